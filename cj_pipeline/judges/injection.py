"""Signs that an essay speaks to the judge instead of to its reader: a gauge for people, which decides nothing.

Here: `injection_signs`, the signs it knows (`SIGNS`), and the vocabulary and thresholds behind them. Not here: what
protects the judge (`prompts` fences essays and says that they are data), and what is done with a flag: no essay is
dropped and no score changes, a person looks.

The detector reads each text in several forms: as it stands (compatibility forms composed away, invisible characters
and accents gone), and again with lookalike letters, spaced-out letters, punctuation inside words and digits for
letters undone. Phrases are looked for by their first word, and only where a clause begins ("Ignore the rubric", never
"many pupils ignore the rubric"), so that a text about exams, judges or chatbots passes. A text that quotes an
injection word for word is flagged like one that means it: only a reader can tell them apart.

No pattern tries again over more than a few words, so the time grows with the length of the text, whatever it says.
"""

import base64
import binascii
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final

SIGNS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "addresses_judge": "The text gives orders to whoever grades it: to ignore the rubric, to follow new "
        "instructions, to behave differently.",
        "answer_imitation": "The text contains a ready-made answer in the form that the judge must give, with a winner "
        "or a confidence.",
        "demands_verdict": "The text says which essay must win, or asks for the highest grade.",
        "encoded_payload": "The text contains a passage in code, such as Base64, hexadecimal or ROT13, that people "
        "cannot read.",
        "fence_imitation": "The text imitates the marks and headings that separate essays from instructions in the "
        "judge's prompt.",
        "hidden_text": "The text contains invisible characters that its language does not need, and may say to a "
        "machine what people cannot see.",
        "lookalike_letters": "Words mix letters of different alphabets that look alike, or are set in symbols that "
        "only look like letters.",
        "role_imitation": "The text imitates the marks by which a chat program tells its instructions from a user's "
        "words.",
    }
)
"""Each sign's stable name, and what it means, in one sentence for a teacher."""


def injection_signs(text: str) -> tuple[str, ...]:
    """The signs of `SIGNS` that a text shows, sorted by name; empty for an ordinary essay.

    Pure and deterministic: the same text has the same signs.
    """
    signs = set[str]()
    if _hides_text(text):
        signs.add("hidden_text")
    if _mixes_alphabets(text):
        signs.add("lookalike_letters")
    for revealed in _revealed(text):
        plain = _folded(revealed)
        latin = plain.translate(_LATIN_LOOKALIKES) if _LOOKALIKE.search(plain) else plain
        # so that each line's beginning is found by the line end before it, which is quick
        lines = f"\n{latin}"
        signs.update(sign for sign, marks in _MARKS.items() if any(mark.search(lines) for mark in marks))
        for form in dict.fromkeys((plain, latin)):
            signs.update(_spoken_signs(form))
        if _carries_code(latin):
            signs.add("encoded_payload")
    return tuple(sorted(signs))


# --- the forms of a text -----------------------------------------------------------------------------------------

# Characters without a glyph of their own: soft hyphens, joiners, direction marks, fillers, variation selectors, tags.
_INVISIBLE_CLASS: Final = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff"
)
_INVISIBLE: Final = re.compile(rf"[{_INVISIBLE_CLASS}\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]++")
_MARK: Final = re.compile(
    "[\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u0610-\u061a\u0640\u064b-\u065f\u0670\u1ab0-\u1aff\u1dc0-\u1dff"
    "\u20d0-\u20ff\ufe20-\ufe2f]++"
)
_TAGS: Final = re.compile("[\U000e0020-\U000e007e]++")
_REVERSED: Final = re.compile("\u202e([^\u202c\n]++)")

_LOOKALIKES: Final = {
    # Cyrillic
    **dict(zip("авеһгіјкӏмнопрԛѕтухԁԝь", "abehrijklmhonpqstyxdwb", strict=True)),
    **dict(zip("АВЕЗІЈКМНОРЅТУХԚԜ", "ABE3IJKMHOPSTYXQW", strict=True)),
    "с": "c",
    "С": "C",
    # Greek
    **dict(zip("αβγεηικνορτυχω", "abyenikvoptuxw", strict=True)),
    **dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "ABEZHIKMNOPTYX", strict=True)),
}
_SMALL_CAPITALS: Final = "ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ"
_LATIN_LOOKALIKES: Final = str.maketrans(
    {**_LOOKALIKES, **dict(zip(_SMALL_CAPITALS, "abcdefghijklmnoprstuvwyz", strict=True)), "ı": "i", "ɡ": "g"}
)
_LOOKALIKE: Final = re.compile(f"[{''.join(map(chr, _LATIN_LOOKALIKES))}]")
_PLAIN_SIGNS: Final = (
    ("【", "["),
    ("】", "]"),
    ("「", '"'),
    ("」", '"'),
    ("“", '"'),
    ("”", '"'),
    ("„", '"'),
    ("_", " "),
)

_SPACED: Final = re.compile(r"(?<!\w)(?:[^\W_][\s.,*·•|/~-]{1,3}){3,}[^\W_](?!\w)")
_INSIDE_WORD: Final = re.compile(r"(?<=[^\W\d])(?:-\s{0,3}\n\s{0,3}|[^\w\s]{1,3})(?=[^\W\d])")
_LEET: Final = re.compile(r"[A-Za-z][013457@$!|]{1,3}[A-Za-z]|[013457@$!|][A-Za-z]{2}|[A-Za-z]{2}[013457]")
_MAYBE_LEET: Final = re.compile(r"[A-Za-z013457@$!|]{3,}+")
_LEET_I: Final = str.maketrans("013457@$!|", "oieastasil")
_LEET_L: Final = str.maketrans("013457@$!|", "oleastasll")
_NOT_ASCII: Final = re.compile(r"[^\x00-\x7f]++")
_ROT13: Final = str.maketrans(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", "NOPQRSTUVWXYZABCDEFGHIJKLMnopqrstuvwxyzabcdefghijklm"
)


def _revealed(text: str) -> Iterator[str]:
    """The text as written and, where it hides something, as it reads with that brought to light."""
    yield text
    if text.isascii():
        return
    if _TAGS.search(text):
        yield _TAGS.sub(lambda run: "".join(chr(ord(tag) - 0xE0000) for tag in run[0]), text)
    if _REVERSED.search(text):
        yield _REVERSED.sub(lambda run: run[1][::-1], text)
    if _INVISIBLE.search(text):
        # they may stand where a space should be
        yield _INVISIBLE.sub(" ", text)


def _folded(text: str) -> str:
    text = _INVISIBLE.sub("", text)
    if not text.isascii():
        text = _MARK.sub("", unicodedata.normalize("NFKD", text))
    for sign, plain in _PLAIN_SIGNS:
        text = text.replace(sign, plain)
    return text


def _undisguised(form: str) -> Iterator[str]:
    """The text, and the same with each plain disguise of its words undone."""
    yield form
    joined = _SPACED.sub(lambda run: _without_gaps(run[0]), form)
    yield _INSIDE_WORD.sub("", joined)
    for table in (_LEET_I, _LEET_L) if _LEET.search(joined) else ():
        read = _MAYBE_LEET.sub(partial(_unleet, table), joined)
        if read != joined:
            yield _INSIDE_WORD.sub("", read)


def _without_gaps(run: str) -> str:
    return "".join(character for character in run if character.isalnum())


def _unleet(table: Mapping[int, int], found: re.Match[str]) -> str:
    word = found[0]
    return word if word.isalpha() or not any(map(str.isalpha, word)) else word.translate(table)


# --- phrases: what is said to the judge --------------------------------------------------------------------------
#
# In these patterns a space is any short gap, "_" a gap within a sentence, "¦" the same with or without a colon, "~" up
# to four words of a sentence, "@" the letter of an essay, "§" the end of an address ("Note to the examiner:"), and "¤"
# a colon or dash to come. Accents are folded as in the texts. All languages are read at once, since an attack may mix
# them.

_INSTRUCTIONS: Final = (
    r"(?:instructions?|rules?|directions?|guidelines?|directives?|prompts?|commands?|criteria|text|context|messages?"
    r"|instruktioner(?:na)?|anvisningar(?:na)?|regler(?:na)?|anweisungen|regeln|vorgaben|instruktionen|hinweise"
    r"|consignes|regles|instrucciones|indicaciones|reglas|normas|ohjeet|ohjeita|saannot|saantoja"
    r"|instruksjone(?:r|ne)|instruktionerne|instrukser?|anvisninger(?:ne)?|reglerne|reglene"
    r"|инструкци[ия]|указания|правила|команды|التعليمات|الاوامر|القواعد)"
)
_EARLIER: Final = (
    r"(?:previous|prior|above|earlier|preceding|foregoing|initial|original|existing|tidigare|föregående|ovanstående"
    r"|ursprungliga|vorherigen?|vorigen?|bisherigen?|obigen?|früheren?|vorangegangenen|ursprünglichen|aiemmat|aiempia"
    r"|edelliset|edellisiä|aikaisemmat|yllä olevat|tidligere|forrige|ovenstående|foregående"
    r"|предыдущи[ех]|прежни[ех]|вышеуказанн\w{1,3})"
)
_AS_ABOVE: Final = (
    r"(?:above|before this|you (?:were|have been) given|ovan|oben|ci dessus|précédentes?|antérieures?|qui précèdent"
    r"|anteriores|previas|de arriba|yllä|ovenfor|выше|السابقة|اعلاه)"
)
_CRITERIA: Final = (
    r"(?:rubrics?|mark(?:ing)? schemes?|(?:marking|grading|assessment|scoring|evaluation|judging)"
    r" (?:criteria|guides?|guidelines|instructions|rules|rubrics?|scheme)|system (?:prompt|message|instructions)"
    r"|bedömningsmatris(?:en)?|bedömnings(?:kriterier|anvisningar)(?:na)?|betygskriterier(?:na)?|bedömningsstöd(?:et)?"
    r"|bewertungs(?:kriterien|rasters?|vorgaben|richtlinien|maßstab)|grille d évaluation|barème"
    r"|critères d évaluation|critères de notation|rúbrica|criterios de (?:evaluación|calificación|corrección)"
    r"|arviointi(?:kriteerit|kriteerejä|ohjeet|ohjeita|perusteet)|vurderingskriterie(?:ne|r|rne)"
    r"|bedømmelseskriterie(?:r|rne)|критери(?:и|ев) (?:оценки|оценивания)|рубрику"
    r"|معايير (?:التقييم|التصحيح)|سلم التقييم)"
)
_YOURS: Final = (
    r"(?:your (?:\w{1,15} )?(?:instructions|guidelines|prompt|programming|criteria|directives)"
    r"|(?:dina|dine) (?:instruktioner|anvisningar|instruksjoner|instrukser|anvisninger)|(?:deine|ihre) anweisungen"
    r"|(?:vos|tes) (?:instructions|consignes)|(?:tus|sus) instrucciones|ohjeesi|ohjeenne"
    r"|(?:твои|ваши|свои) инструкции|تعليماتكم?)"
)
_ALL: Final = (
    r"(?:all (?:of )?(?:(?:the|your|these|those) )?(?:instructions|criteria|directives|guidelines)"
    r"|alla (?:instruktioner|anvisningar)|alle (?:anweisungen|instruksjoner|instruktioner)"
    r"|toutes (?:les|vos|tes) (?:instructions|consignes)|todas las instrucciones|kaikki ohjeet|все инструкции"
    r"|(?:جميع|كل) التعليمات)"
)
_EVERYTHING: Final = (
    r"(?:(?:everything|anything|all|whatever)(?: (?:written|said|stated|that|is|was|you|were|told|it|says)){0,4}"
    r" (?:above|before this|so far|previously)|allt ovan(?:stående)?|alles obige|tout ce qui précède"
    r"|todo lo anterior|kaikki edellinen|alt ovenfor|все предыдущее|все (?:что )?выше\w{0,10}|كل ما سبق)"
)
_ESSAY: Final = (
    r"(?:essays?|submission|composition|paper|text|script|candidate|essän?|uppsats(?:en)?|texten|aufsatz|arbeit|essai"
    r"|rédaction|copie|texte|dissertation|ensayo|redacción|texto|esse\w{0,5}|kirjoitelma\w{0,4}|teksti\w{0,4}"
    r"|stil(?:en)?|teksten?|besvarelsen?|oppgaven?|opgaven?|эссе|сочинени[еяю]|тексту?|работ[ауе]"
    r"|المقالة?|للمقالة?|النص|مقالي)"
)
_OTHER: Final = (
    rf"(?:(?:the (?:other|competing|opposing)|den andra|den anderen|l autre|el otro|toista|den andre|den anden"
    rf"|друго[ей]) {_ESSAY}|المقال الاخر)"
)
_ORDERS: Final = (
    rf"(?:{_EARLIER} (?:\w{{1,15}} )?{_INSTRUCTIONS}|{_INSTRUCTIONS} {_AS_ABOVE}|{_CRITERIA}|{_YOURS}|{_ALL}"
    rf"|{_EVERYTHING}|{_OTHER})"
)

_THIS: Final = (
    r"(?:this|my|the (?:above|following|present)|denna|den här|min|diese[nrms]?|meine[nrm]?|mein|cet|cette|ce|mon|ma"
    r"|este|esta|mi|tämän?|tälle|minun|denne|dette|mitt?|эт(?:от|о|у|ой|ому)|мо(?:е|ю|ей|ему)|هذا|هذه|لهذا|لهذه)"
)
_FIRST: Final = (
    r"(?:first|second|första|andra|erste[nrms]?|zweite[nrms]?|premi(?:er|ère)|seconde?|deuxième|primer[ao]?|segund[ao]"
    r"|ensimmäi\w{2,4}|toi(?:nen|sen)|første|перв(?:ое|ый|ую)|втор(?:ое|ой|ую))"
)
_TOP: Final = (
    r"(?:highest|best|top|maximum|perfect|högsta|bästa|högst|bäst|höchste[nr]?|höchst|beste[nr]?|bestmögliche\w?"
    r"|meilleure?s?|maximale?|plus (?:haute|élevée)|más alt[ao]|máxim[ao]|mejor|korkein|korkeimman|paras|parhaan"
    r"|høyeste?|højeste?|bedste?|высш\w{1,4}|наивысш\w{1,4}|максимальн\w{1,4}|лучш\w{1,4}"
    r"|اعلى|افضل|الاعلى|الافضل|كاملة|الكاملة)"
)
_GRADE: Final = (
    r"(?:grades?|marks?|scores?|points?|ratings?|betyg(?:et)?|poäng|note|notes|punktzahl|punkte|nota|calificación"
    r"|puntuación|arvosana(?:n)?|pisteet|karakter(?:en)?|poengsum|оценк\w|балл\w{0,3}|درجة|الدرجة|علامة|العلامة)"
)
_TOP_GRADE: Final = (
    rf"(?:{_TOP} (?:\w{{1,12}} )?{_GRADE}|{_GRADE} (?:\w{{1,12}} ){{0,2}}{_TOP}|full (?:marks|points|score)"
    rf"|täydet pisteet|högstabetyg|bestnote|höchstnote|высший балл|an @)"
)
_AS: Final = r"(?:as|to be|at|with|som|med|als|mit|comme|avec|como|con|kuin|как|на|ب\w{0,10})"

_AI: Final = r"(?:ai|llms?|(?:large )?language models?|chatgpt|gpt|claude|gemini|chatbots?|bots?)"
_EXAMINER: Final = r"(?:examiners?|graders?|evaluators?|assessors?|markers?|raters?|judges?|reviewers?)"
_ADDRESSEE: Final = (
    rf"(?:(?:the|any|all|an?|whichever|whatever) )?(?:(?:automated|automatic|artificial|essay) ){{0,2}}"
    rf"(?:{_AI}(?: (?:{_EXAMINER}|model|system|assistant))?|{_EXAMINER})"
)
_FOREIGN_ADDRESSEE: Final = (
    r"(?:bedömaren?|examinatorn?|rättaren|granskaren|ain|ai bedömaren|språkmodellen"
    r"|(?:den|die|das) (?:prüfer\w{0,2}|bewerter\w{0,2}|korrektor\w{0,2}|gutachter\w{0,2}|ki|sprachmodell)"
    r"|(?:l )?(?:examinateur|correcteur|évaluateur|ia|intelligence artificielle)|le correcteur|le modèle"
    r"|(?:el |la )?(?:evaluador\w{0,2}|examinador\w{0,2}|corrector\w{0,2}|ia|modelo)"
    r"|arvioijalle|tekoälylle|tarkastajalle|sensor|bedømmeren?|dommeren|ki|ai"
    r"|проверяющ\w{2,3}|экзаменатор\w{0,2}|оценщик\w{0,2}|ии|языковой модели"
    r"|للمصحح|المصحح|للمقيم|المقيم|للممتحن|الممتحن|للذكاء|الذكاء)"
)
_GRADING: Final = r"(?:reading|grading|judging|marking|assessing|evaluating|comparing|scoring|rating)"
_SHUN: Final = (
    r"(?:follow(?:ing)?|apply(?:ing)?|us(?:e|ing)|obey(?:ing)?|consider(?:ing)?|consult(?:ing)?|heed(?:ing)?"
    r"|read(?:ing)?|rely(?:ing)? on|listen(?:ing)? to|compare|grad(?:e|ing)|stick to|take into account)"
)

_ANYWHERE, _CLAUSE, _SENTENCE = range(3)
_ARABIC_PREFIXES: Final = ("", "و", "ف")


@dataclass(frozen=True)
class _Phrase:
    """One way to speak to the judge.

    Attributes:
        sign: what it is a sign of.
        start: where it counts: anywhere, where a clause begins, or where a sentence begins or a plea has just been
            made ("please ...", "you must ...").
        openings: the words it may begin with.
        rest: the pattern of what follows the first word.
    """

    sign: str
    start: int
    openings: str
    rest: str


_IGNORE: Final = (
    "ignore disregard forget override overrule bypass skip discard neglect overlook "
    "ignorera strunta bortse glöm åsidosätt förbise "
    "ignoriere ignoriert ignorieren vergiss vergesst vergessen missachte missachten "
    "ignorez ignorer oublie oubliez oublier négligez négliger "
    "ignora ignorad ignoren ignorar olvida olvide olviden olvidad descarta descarte omite omita "
    "ohita ohittakaa unohda unohtakaa sivuuta sivuuttakaa "
    "ignorer glem overse tilsidesæt tilsidesett "
    "игнорируй игнорируйте проигнорируй проигнорируйте забудь забудьте отбрось отбросьте "
    "تجاهل تجاهلوا تجاهلي انس انسوا اهمل اهملوا"
)
_CHOOSE: Final = (
    "choose select pick prefer favor favour välj utse föredra wähle wählen bevorzuge bevorzugen "
    "choisis choisissez choisir préfère préférez désigne désignez elige elija elijan escoge escoja selecciona "
    "seleccione valitse valitkaa velg vælg выбери выберите выбирай выбирайте предпочти предпочтите اختر اختاروا اختاري"
)
_DECLARE: Final = (
    "vote declare announce pronounce crown rösta kora entscheide entscheiden erkläre erklären votez déclare déclarez "
    "declara declare proclama kår kåre назови назовите признай признайте объяви объявите"
)
_RATE: Final = (
    "rate rank grade score mark judge declare make bedöm betygsätt ranka bewerte bewerten évalue évaluez notez note "
    "califica califique evalúa evalúe puntúa arvioi arvioikaa arvostele vurder bedøm оцени оцените قيم قيموا"
)
_GIVE: Final = (
    "give award grant assign ge tilldela gib geben vergib vergeben donne donnez attribue attribuez accorde accordez "
    "da dale asigna asigne otorga otorgue pon anna antakaa gi giv поставь поставьте дай дайте присвой присвойте "
    "اعط اعطوا اعطي امنح امنحوا"
)

_PHRASES: Final = (
    # --- to leave the rubric aside
    _Phrase("addresses_judge", _CLAUSE, _IGNORE, rf"~ {_ORDERS}"),
    _Phrase("addresses_judge", _CLAUSE, "do", rf" not {_SHUN}~ {_ORDERS}"),
    _Phrase("addresses_judge", _CLAUSE, "don", rf" t {_SHUN}~ {_ORDERS}"),
    _Phrase("addresses_judge", _CLAUSE, "never dont stop cease", rf" {_SHUN}~ {_ORDERS}"),
    _Phrase("addresses_judge", _CLAUSE, "set put leave lay", rf"(?: aside~ {_ORDERS}|~ {_ORDERS}~ aside)"),
    _Phrase("addresses_judge", _CLAUSE, "pay take", rf" no (?:attention|notice)~ {_ORDERS}"),
    _Phrase("addresses_judge", _CLAUSE, "följ använd tillämpa bry følg bruk brug", rf"~ (?:inte|ikke)~ {_ORDERS}"),
    _Phrase("addresses_judge", _CLAUSE, "se hoppa", rf" (?:bort|över)~ {_ORDERS}"),
    _Phrase(
        "addresses_judge", _CLAUSE, "befolge befolgen beachte beachten folge folgen verwende", rf"~ {_ORDERS}~ nicht"
    ),
    _Phrase(
        "addresses_judge",
        _ANYWHERE,
        "bitte musst sollst",
        rf"~ {_ORDERS}~ (?:ignorieren|vergessen|missachten|nicht (?:be)?(?:achten|folgen))",
    ),
    _Phrase("addresses_judge", _CLAUSE, "ne", rf" (?:ten\w{{1,3}}|tiens|suivez|suis|appliquez|lisez) pas~ {_ORDERS}"),
    _Phrase("addresses_judge", _CLAUSE, "faites fais faire", rf" abstraction~ {_ORDERS}"),
    _Phrase("addresses_judge", _CLAUSE, "no", rf" (?:tengas?|tengan|sigas?|sigan|apliques?|uses?|leas?)~ {_ORDERS}"),
    _Phrase("addresses_judge", _CLAUSE, "haz haga hagan", rf" caso omiso~ {_ORDERS}"),
    _Phrase("addresses_judge", _CLAUSE, "älä älkää", rf" (?:noudata|noudattako|huomioi|käytä|lue)~ {_ORDERS}"),
    _Phrase(
        "addresses_judge", _CLAUSE, "jätä jättäkää", rf"(?:~ {_ORDERS}~ huomi\w{{1,8}}| huomi\w{{1,8}}~ {_ORDERS})"
    ),
    _Phrase(
        "addresses_judge",
        _CLAUSE,
        "не",
        rf" (?:учитывай|следуй|применяй|соблюдай|обращай|читай)(?:те)?(?: внимания)?~ {_ORDERS}",
    ),
    _Phrase("addresses_judge", _CLAUSE, "لا", rf" (?:تتبع|تتبعوا|تلتزم|تطبق|تستخدم|تراع)~ {_ORDERS}"),
    _Phrase("addresses_judge", _CLAUSE, "reveal repeat print output display", r"~ your (?:system )?(?:prompt|rubric)"),
    # --- by name
    _Phrase(
        "addresses_judge",
        _SENTENCE,
        "note message memo notice instruction instructions",
        rf" (?:to|for) {_ADDRESSEE}§",
    ),
    _Phrase("addresses_judge", _SENTENCE, "attention", rf" {_ADDRESSEE}§"),
    _Phrase("addresses_judge", _SENTENCE, "dear hello hi hey attention", rf" {_AI} {_EXAMINER}"),
    _Phrase(
        "addresses_judge",
        _SENTENCE,
        "meddelande notis instruktion hinweis nachricht anweisung achtung note message consigne nota mensaje "
        "instrucción instrucciones atención viesti huomautus ohje beskjed besked melding merknad сообщение "
        "примечание инструкция внимание ملاحظة رسالة تعليمات",
        rf"(?: (?:till|an|für|à|au|pour|para|al?|til|для|الى))? {_FOREIGN_ADDRESSEE}§",
    ),
    _Phrase("addresses_judge", _CLAUSE, "if", rf"~ (?:{_AI}|{_EXAMINER})~ {_GRADING} (?:this|these|my|it)"),
    _Phrase("addresses_judge", _CLAUSE, "as", rf" (?:an|the)(?: \w{{1,15}})? {_AI}~ you (?:must|should|have to|shall)"),
    _Phrase("addresses_judge", _CLAUSE, "om", r" du är en (?:ai|språkmodell)"),
    _Phrase("addresses_judge", _CLAUSE, "wenn falls", r" (?:du|sie) eine? (?:ki|sprachmodell)"),
    _Phrase("addresses_judge", _CLAUSE, "si", r" (?:vous êtes|tu es|eres|es usted) une? (?:ia|model\w) "),
    _Phrase("addresses_judge", _CLAUSE, "если", r" (?:ты|вы) (?:ии|искусственный интеллект|языковая модель)"),
    # --- to be someone else, to follow something else
    _Phrase(
        "addresses_judge",
        _ANYWHERE,
        "you",
        rf" are (?:now|no longer|hereby)(?: (?:an?|the|in)| \w{{1,15}}){{0,3}}?"
        rf" (?:{_AI}|grader|examiner|evaluator|(?:developer|debug|admin|jailbreak|unrestricted|maintenance) mode)",
    ),
    _Phrase(
        "addresses_judge",
        _SENTENCE,
        "new updated revised nya neue nouvelle nouvelles nueva nuevas uudet nye новые новая",
        r" (?:grading |scoring |system )?(?:instructions?|directives?|prompt|rubric|instruktioner|anvisningar"
        r"|anweisung(?:en)?|consignes?|instrucci(?:ón|ones)|ohjeet|instruks(?:joner|er)|инструкци[ия])¤",
    ),
    _Phrase("addresses_judge", _SENTENCE, "تعليمات", r" جديدة¤"),
    _Phrase("addresses_judge", _ANYWHERE, "your", r" new (?:instructions?|prompt|rubric|directives?) (?:is|are)"),
    _Phrase(
        "addresses_judge",
        _ANYWHERE,
        "this these",
        r" (?:instructions?|messages?|directives?)~ (?:overrides?|supersedes?|replaces?"
        r"|takes? (?:precedence|priority))",
    ),
    _Phrase(
        "addresses_judge",
        _ANYWHERE,
        "rubric",
        r"(?: (?:above|has|been|is|was|now|hereby)){1,4} (?:cancelled|canceled|withdrawn|suspended|void|revoked"
        r"|superseded|no longer valid)",
    ),
    # --- the verdict
    _Phrase(
        "demands_verdict",
        _SENTENCE,
        "answer respond reply output return svara svar antworte antworten réponds répondez répondre responde responda "
        "vastaa vastatkaa ответь ответьте отвечай отвечайте اجب اجيبوا",
        rf"(?:_(?:with|sie|usted|only|just|simply|strictly|always|the|letter|option|med|bara|endast|mit|nur|par|con|solo|только"
        rf"|vain|kun|بالحرف|ب|{_ESSAY})){{0,4}}_@",
    ),
    _Phrase(
        "demands_verdict",
        _CLAUSE,
        f"{_CHOOSE} {_DECLARE}",
        rf"(?:~ {_ESSAY}(?: (?:number|nr|no))?_@| (?:(?:the|only|always|for|till|på|für|pour|por|за|aina) )?"
        rf"(?:{_THIS} {_ESSAY}|(?:den |den |der |la |le |el )?{_FIRST} {_ESSAY}|المقالة? (?:الاولى?|الثانية?)))",
    ),
    _Phrase(
        "demands_verdict",
        _SENTENCE,
        _CHOOSE,
        r"_(?:(?:option|answer|alternative|alternativ|letter|response|sie|usted|only|always|just)_){0,2}@",
    ),
    _Phrase(
        "demands_verdict", _CLAUSE, _RATE, rf"~ (?:{_THIS} {_ESSAY}|{_ESSAY}_@)~ {_AS}(?: \w{{1,12}}){{0,2}}? {_TOP}"
    ),
    _Phrase(
        "demands_verdict",
        _CLAUSE,
        _RATE,
        rf" {_THIS} {_ESSAY}(?:_(?:with|as|at))?(?:_an?)?(?:_@|_(?:10|100))",
    ),
    _Phrase(
        "demands_verdict",
        _CLAUSE,
        "declare announce crown name make",
        rf"~ (?:{_THIS} {_ESSAY}|{_ESSAY}_@)~ (?:winner|best|better)",
    ),
    _Phrase(
        "demands_verdict",
        _CLAUSE,
        _GIVE,
        rf"(?:~ (?:{_THIS} {_ESSAY}|{_ESSAY}_@)~ {_TOP_GRADE}|~ {_TOP_GRADE}~ (?:{_THIS} {_ESSAY}|{_ESSAY}_@))",
    ),
    _Phrase("demands_verdict", _SENTENCE, "give award", rf" (?:it|me|this)(?: (?:the|a|my))? {_TOP_GRADE}"),
    _Phrase(
        "demands_verdict",
        _ANYWHERE,
        "winner verdict vinnare vinnaren gewinner sieger gagnant vainqueur ganador voittaja vinder vinneren vinderen "
        "победитель الفائز",
        rf"(?:_(?:is|must be|should be|är|ist|est|es|on|er|это|هو))?¦(?:{_ESSAY}_)?@",
    ),
    _Phrase(
        "demands_verdict",
        _ANYWHERE,
        "your ditt din deine ihre votre ta tu su твой ваш",
        r"(?:_\w{1,12})?_(?:answer|verdict|decision|choice|judge?ment|output|response|vote|svar|beslut|antwort"
        r"|entscheidung|réponse|décision|respuesta|decisión|veredicto|ответ)_(?:must|should|shall|has to|will|måste|ska"
        rf"|muss|soll|doit|debe|должен)(?:_\w{{1,8}}){{0,2}}?_(?:{_ESSAY}_)?@",
    ),
    _Phrase(
        "demands_verdict",
        _ANYWHERE,
        "essay submission uppsats essä aufsatz essai copie rédaction ensayo redacción essee эссе сочинение المقال "
        "المقالة",
        r"_@~_(?:best|better|superior|stronger|winner|wins?|bäst|bättre|vinna|vinner|vinnare|besser|beste|gewinnen"
        r"|gewinnt|gewinner|sieger|meilleure?|supérieure?|gagne|gagner|gagnante?|mejor|ganador|gana|ganar|parempi|paras"
        r"|voittaa|voittaja|лучше|победитель|побеждает|выигрывает|افضل|الافضل|الفائز|الفائزة)",
    ),
    _Phrase(
        "demands_verdict",
        _ANYWHERE,
        "this denna diese dieser cette cet este esta tämä denne эта это этот هذا هذه",
        rf"_{_ESSAY}_(?:must|should|has to|needs to|deserves(?: to)?|ought to|måste|ska|bör|förtjänar|muss|soll"
        rf"|verdient|doit|mérite|debe|merece|ansaitsee|fortjener|должн[оа]|заслуживает|يجب|يستحق)~_"
        rf"(?:win|winner|vinna|gewinnen|gagner|ganar|voittaa|voiton|vinde|vinne|победить|{_TOP_GRADE})",
    ),
)

_CHINESE_START: Final = (
    r"(?:^|[,.!?:;\s\"(\[。、]|请你?|請你?|务必|必须|必須|你(?:要|应该?|應該?|必须|必須|需要)|现在|現在|立即|并且?)"
)
_CHINESE: Final = {
    "addresses_judge": (
        rf"{_CHINESE_START}(?:请|請)?(?:忽略|无视|無視|忘记|忘記|忘掉|忽视|忽視|不要理会|不要遵循|不要按照|不要参考|不用管|别管)"
        r"[^,.!?:;\n。]{0,8}?(?:(?:之前|以前|以上|上面|上述|先前|此前|前面|前述|所有)[^,.!?:;\n。]{0,6}?"
        r"(?:指令|指示|说明|說明|规则|規則|提示|要求|标准|標準|命令|内容|內容)"
        r"|(?:评分|評分|评卷|阅卷|評卷)(?:标准|標準|细则|細則|规则|規則|准则|要求)|系统提示|系統提示)"
        r"|(?:致|告|给|給)(?:评分|評分|阅卷|閱卷|评卷|评审|AI|人工智能)(?:老师|老師|者|员|員|模型|系统)?\s?:"
        r"|如果你是(?:一个)?(?:AI|人工智能|语言模型|語言模型)"
    ),
    "demands_verdict": (
        rf"{_CHINESE_START}(?:请|請)?(?:直接|只|始终)?(?:选择|選擇|选|選|回答|输出|輸出|判定)"
        r"[:\"\s]{0,3}(?:作文|文章|短文)?\s?(?:(?-i:[AB])(?![A-Za-z])|[甲乙])"
        r"|(?:作文|文章)\s?(?:[AB]|[甲乙])(?:更好|获胜|獲勝|胜出|是最好|必须赢)"
        r"|(?:给|給|授予|打)[^,.!?\n。]{0,6}?(?:这篇|這篇|本篇|本|我的)(?:作文|文章)[^,.!?\n。]{0,6}?(?:最高|满分|滿分)"
        r"|你的(?:答案|判断|选择)(?:必须|应该|应当)是|(?:胜者|获胜者|赢家)(?:是|为)?[:\"\s]{0,3}(?:作文|文章)?[AB甲乙]"
    ),
}
_CHINESE_SIGNS: Final = {sign: re.compile(rest, re.IGNORECASE | re.MULTILINE) for sign, rest in _CHINESE.items()}
_HAN: Final = re.compile("[\u4e00-\u9fff]")
_BETWEEN_HAN: Final = re.compile(r"(?<=[\u4e00-\u9fff])[\s*·•|/~-]{1,3}(?=[\u4e00-\u9fff])")

# What may stand between the beginning of a clause and its first word of weight.
_LEAD_INS: Final = (
    "now then so just simply also always immediately therefore instead hereby first kindly nu därför nun jetzt "
    "maintenant ahora nyt nå теперь الان a an important urgent special viktigt wichtige wichtiger importante tärkeä "
    "viktig vigtig важное"
)
_PLEAS: Final = (
    r"please|kindly|you (?:must|have to|shall)|you are (?:hereby )?(?:required|instructed|ordered|asked|told|obliged"
    r"|requested) to|i (?:urge|beg|ask|instruct|order|command) you to|vänligen|snälla|(?:du|ni) (?:måste|ska|skall)"
    r"|var (?:god|snäll)(?: och)?|bitte|du (?:musst|sollst)|sie müssen|veuillez|s il vous plaît|merci de|vous devez"
    r"|tu dois|por favor|debes|usted debe|debe usted|tienes que|ol(?:e|kaa) hyvä ja"
    r"|sinun (?:täytyy|pitää|on)|vennligst|venligst|vær så snill(?: (?:og|å))?|du (?:må|skal)|пожалуйста|прошу(?: вас)?"
    r"|ты должен|вы должны|من فضلك|يرجى|الرجاء|ارجو"
    r"|(?:يجب )?عليك ان|يجب ان"
)
_WISHES: Final = (
    r"you (?:should|ought to|can|may)|(?:could|would|can|will) you|if you (?:could|would)|(?:du|ni) (?:bör|kan)|kan du"
    r"|sie sollten|vous pouvez|pourriez vous|puedes|podría|можете|вы могли бы"
)
_AND: Final = r"(?:and|then|och|und|et|y|ja|og|и)"
_CONTEXT_LENGTH: Final = 100


def _source(pattern: str) -> str:
    """A phrase pattern in the folded spelling of the texts."""
    return _MARK.sub("", unicodedata.normalize("NFKD", pattern))


def _context(pattern: str) -> re.Pattern[str]:
    return re.compile(_source(pattern).replace(" ", r"\W{1,12}"), re.IGNORECASE)


_LEAD_IN: Final = rf"(?:(?:{'|'.join(_LEAD_INS.split())})\W{{1,6}}){{0,3}}"
_AFTER_SENTENCE: Final = (
    r"(?:[.!?。؟…][\"'”’»)\]*]{0,3}\s{0,12}[\"'“‘«(\[*]{0,2}"
    r"|\n[>#*•(\[\d.)-]{1,6}\s{0,6}|\n\s{0,6}\n[\s>#*•(\[\"'-]{0,8})"
)
_BEFORE_SENTENCE: Final = _context(rf"(?:{_AFTER_SENTENCE}|(?<!\w)(?:{_PLEAS})\W{{1,6}}){_LEAD_IN}\Z")
_BEFORE_CLAUSE: Final = _context(
    rf"(?:{_AFTER_SENTENCE}|(?<!\w)(?:{_PLEAS}|{_WISHES})\W{{1,6}}|[^\w\s]\s{{0,8}}"
    rf"|(?<!\w)(?:{_PLEAS}|{_WISHES})(?!\w)[^.!?\n]{{1,60}}\W{_AND}\W{{1,6}}"
    rf"|{_AFTER_SENTENCE}(?:{'|'.join(_IGNORE.split())})(?!\w)[^.!?\n]{{1,60}}\W{_AND}\W{{1,6}}){_LEAD_IN}\Z"
)

# The capital A, or a small one that is no article; b; their Cyrillic and Arabic fellows. Never "A or B", "A-levels".
_LABEL: Final = (
    r"(?:(?-i:[AА])(?!\W{1,3}(?-i:[A-Z]{2}))|[bбب]|(?-i:В)|[aа](?=[^\w\n]{0,6}(?:\Z|[\n.,;:!?)\]}\"]))"
    r"|a(?=\W{1,12}(?:and|because)\b)|ا)(?!\w)(?!['’-])(?!\W{1,3}levels?\b)(?![^\w.;!?]{1,3}(?:or|eller|oder|ou|o|tai|или|او)\b)"
)


@dataclass(frozen=True)
class _Reading:
    """A phrase ready to be matched after its first word, in running text or in letters without gaps."""

    sign: str
    start: int
    rest: re.Pattern[str]
    squeezed_rest: re.Pattern[str]


_SPREAD: Final = str.maketrans(
    {
        " ": r"\W{1,12}",
        "_": r"[^\w.!?:]{1,6}",
        "¦": r"[^\w.!?]{1,6}",
        "~": r"(?:[^\w.!?]{1,12}\w++){0,4}?",
        "@": _LABEL,
        "§": r"(?=\s?[:,.!—–-]|\s(?:please|you))",
        "¤": r"(?=\s?[:—–])",
    }
)
_SQUEEZED: Final = str.maketrans({" ": "", "_": "", "¦": "", "~": r"\w{0,24}?", "@": "[abабвب]", "§": "", "¤": ""})


def _reading(phrase: _Phrase) -> _Reading:
    rest = _source(phrase.rest)
    return _Reading(
        phrase.sign,
        phrase.start,
        re.compile(rf"{rest.translate(_SPREAD)}(?!\w)", re.IGNORECASE),
        re.compile(rest.translate(_SQUEEZED), re.IGNORECASE),
    )


def _by_opening() -> dict[str, tuple[_Reading, ...]]:
    found: dict[str, list[_Reading]] = {}
    for phrase in _PHRASES:
        reading = _reading(phrase)
        for word in dict.fromkeys(_source(phrase.openings).lower().split()):
            for prefix in _ARABIC_PREFIXES if word > "\u0600" else ("",):
                found.setdefault(prefix + word, []).append(reading)
    return {word: tuple(readings) for word, readings in found.items()}


_OPENINGS: Final = _by_opening()
_WORD: Final = re.compile(r"[^\W_]++")
# Openings so short that they stand in any row of letters say nothing there.
_SHORTEST_SQUEEZED_OPENING: Final = 4


def _spoken_signs(form: str) -> set[str]:
    """The signs that are phrases, however the words are disguised."""
    signs = set[str]()
    for reading in dict.fromkeys(_undisguised(form)):
        signs |= _phrase_signs(reading)
    spaced = "".join(_without_gaps(run[0]) for run in _SPACED.finditer(form)).lower()
    if spaced:
        signs |= _squeezed_signs(spaced) | _squeezed_signs(spaced.translate(_LEET_I))
    if _HAN.search(form):
        whole = _BETWEEN_HAN.sub("", form)
        signs.update(sign for sign, pattern in _CHINESE_SIGNS.items() if pattern.search(whole))
    return signs


def _phrase_signs(form: str) -> set[str]:
    signs = set[str]()
    for word in _WORD.finditer(form):
        for phrase in _OPENINGS.get(word[0].lower(), ()):
            if phrase.sign not in signs and phrase.rest.match(form, word.end()) and _starts(form, word.start(), phrase):
                signs.add(phrase.sign)
    return signs


def _starts(form: str, position: int, phrase: _Reading) -> bool:
    if phrase.start == _ANYWHERE:
        return True
    before = form[max(0, position - _CONTEXT_LENGTH) : position]
    if position <= _CONTEXT_LENGTH:
        before = f"\n\n{before}"
    # a hard-wrapped line goes on in small letters
    if form[position].isupper() and before.endswith("\n"):
        return True
    wanted = _BEFORE_CLAUSE if phrase.start == _CLAUSE else _BEFORE_SENTENCE
    return wanted.search(before) is not None


def _squeezed_signs(letters: str) -> set[str]:
    signs = set[str]()
    for opening, phrases in _OPENINGS.items():
        if len(opening) < _SHORTEST_SQUEEZED_OPENING:
            continue
        position = letters.find(opening)
        while position >= 0:
            end = position + len(opening)
            signs.update(p.sign for p in phrases if p.sign not in signs and p.squeezed_rest.match(letters, end))
            position = letters.find(opening, end)
    return signs


# --- marks: what only a machine's prompt needs -------------------------------------------------------------------

_FENCED: Final = r"(?:essay|text|submission|student|answer|document|data|input|prompt|instructions|rubric)"
_BEGIN_END: Final = (
    r"(?:begin|end|start|stop|close|slut|början|börja|ende|anfang|fin|debut|inicio|loppu|alku|slutt|конец|начало)"
)
_NAMED: Final = rf"(?:{_FENCED}|essä|uppsats|aufsatz|essai|copie|ensayo|essee|kirjoitelma|stil|эссе|сочинени[ея])"
_SECTIONS: Final = (
    r"(?:rubric|your answer|essays are data|notes to the examiner|what the students were asked|essay [ab]"
    r"|(?:begin|end) (?:of )?(?:the )?(?:essay|text))"
)
_VALUE: Final = r"[\s\"'*`:=]{1,8}"

_MARKS: Final = {
    sign: tuple(re.compile(_source(mark).translate(_LATIN_LOOKALIKES), re.IGNORECASE | re.MULTILINE) for mark in marks)
    for sign, marks in {
        "fence_imitation": (
            # [END ESSAY A ...], <begin text>, --- END ESSAY ---
            rf"(?:[\[<{{]|[=*~-]{{2}})\s{{0,3}}(?:/\s{{0,2}})?{_BEGIN_END}\s{{1,3}}(?:\w{{1,4}}\s{{1,3}}){{0,2}}{_NAMED}\b",
            # END ESSAY A; the capital letters and the label tell it from "at the end of the text"
            rf"\b{_BEGIN_END}\s{{1,3}}(?:of\s{{1,3}})?(?:the\s{{1,3}})?(?:essay|submission)\s{{1,3}}(?-i:[AB])\b",
            # ESSAY A 3f8c...
            r"(?:essay|begin|end)(?:\W{1,3}\w{1,8}){0,2}?\W{1,3}[0-9a-f]{12,}+\b",
            r"\b[0-9a-f]{12,}+\W{1,4}(?:essay|begin|end)\b",
            rf"</?\s{{0,3}}(?:student[ -]?|user[ -]?)?(?:{_FENCED}|context|task|untrusted|system)[ \w=\"'-]{{0,40}}>",
            r"\n[ \t]{0,8}#{3,}[ \t]{0,8}$",
            rf"\n[ \t]{{0,8}}#{{1,6}}[ \t]{{0,4}}{_SECTIONS}\b[^\n]{{0,12}}$",
            r"\n[ \t]{0,8}(?:```|~~~|\"\"\"|''')[a-z]{0,12}[ \t]{0,8}$",
            r"which essay is better,? a or b\?\s{0,3}answer in the form",
        ),
        "answer_imitation": (
            r"[{\"'`]\s{0,8}(?:winner|better[ -]?essay)[\"'`]?\s{0,4}[:=]\s{0,4}[\"'`]{0,2}\s{0,2}(?:essay.)?[ab]\b",
            r"[{,][\s\"'`]{0,8}(?:winner|confidence|justification)[\"'`]\s{0,4}:",
            rf"\bwinner{_VALUE}(?:essay.)?[ab]\b[^{{}}]{{0,80}}?\b(?:confidence|justification)[\"'*`]{{0,2}}\s{{0,2}}[:=]",
            rf"\bconfidence{_VALUE}[1-5]\b[^{{}}]{{0,80}}?\b(?:winner|justification)[\"'*`]{{0,2}}\s{{0,2}}[:=]",
        ),
        "role_imitation": (
            r"\n[ \t>*#\[(<|-]{0,8}(?:system|assistant|developer|user)[*\])>|]{0,4}\s?:",
            r"<\|[a-z ]{2,24}\|>",
            r"\[/?(?:inst|system|sys|assistant)\]|<</?sys>>|<(?:start|end) of turn>|</?(?:assistant|user|system)>",
            r"\n[ \t]{0,8}#{2,6}[ \t]{0,4}(?:instructions?|system|assistant|response|human|user|input)\b"
            r"[ \t]{0,4}:?[ \t]{0,4}$",
            r"\bsystem (?:override|message|prompt)[\"'\])*]{0,3}\s?:|[\[(](?:system|admin|developer) [a-z]{1,12}[\])]",
        ),
    }.items()
}


# --- what people cannot see --------------------------------------------------------------------------------------

_LETTER: Final = "A-Za-z\u00c0-\u024f\u0370-\u03ff\u0400-\u052f"
_RIGHT_TO_LEFT: Final = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_OVERRIDE: Final = re.compile("[\u202d\u202e]")
_DIRECTION: Final = re.compile("[\u202a-\u202c\u2066-\u2069]")
_DIRECTION_MARK: Final = re.compile("[\u200e\u200f\u061c]")
_FLAG: Final = re.compile("\U0001f3f4[\U000e0030-\U000e007a]{1,6}\U000e007f")
_TAG: Final = re.compile("[\U000e0000-\U000e007f]")
# Joiners belong after letters that join (Arabic, Indic scripts and on) and in emoji, spaces of no width in scripts
# written without spaces; selectors choose the look of an emoji or an ideograph.
_NATURAL: Final = re.compile(
    "(?<=[\u0590-\u10ff\u1780-\u1cff\ua800-\uabff\ufb1d-\ufefc\U00011000-\U00011fff])[\u200b-\u200d\u2060]"
    "|(?<=[\u2190-\u2bff\ufe0f\U0001f000-\U0001faff])[\u200d\ufe0e\ufe0f]"
    "|[\u200b\u2060](?=[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff])"
    "|(?<=[0-9#*\u00a9\u00ae\u203c\u2049\u2122\u2139\u3030\u303d\u3297\u3299])\ufe0f"
    "|(?<=[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])[\ufe00-\ufe02\U000e0100-\U000e01ef]"
    "|(?<=[\u1800-\u18aa])[\u180b-\u180f]|[\u115f\u1160](?=[\u1100-\u11ff])|(?<=[\u1100-\u11ff])[\u115f\u1160]"
)
_UNNEEDED: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200d\u2060-\u2065\u206a-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff"
    "\uffa0\ufff9-\ufffb\U000e0100-\U000e01ef]"
)
_WITHIN_WORD: Final = re.compile(rf"(?<=[{_LETTER}])[\u034f\u200b-\u200f\u2060-\u206f\ufeff]++(?=[{_LETTER}])")
_LETTER_BY_LETTER: Final = re.compile(r"\u00ad\w\u00ad")
_MARKUP: Final = re.compile(
    r"<(?:!--|[a-z]{1,10}\s[^<>\n]{0,80}?(?:display\s?:\s?none|font-size\s?:\s?0(?![.\d])))", re.IGNORECASE
)

# A character or two are left over from copying a web page; more than that somebody put there.
_MAX_UNNEEDED: Final = 3
_MAX_WITHIN_WORDS: Final = 1
_MAX_SOFT_HYPHENS: Final = 20


def _hides_text(text: str) -> bool:
    if _MARKUP.search(text):
        return True
    if text.isascii() or not _INVISIBLE.search(text):
        return False
    if _OVERRIDE.search(text) or _TAG.search(_FLAG.sub("", text)) or _LETTER_BY_LETTER.search(text):
        return True
    if text.count("\u00ad") > _MAX_SOFT_HYPHENS or len(_WITHIN_WORD.findall(text)) > _MAX_WITHIN_WORDS:
        return True
    if not _RIGHT_TO_LEFT.search(text) and (
        _DIRECTION.search(text) or len(_DIRECTION_MARK.findall(text)) > _MAX_UNNEEDED
    ):
        return True
    return len(_UNNEEDED.findall(_NATURAL.sub("", text))) > _MAX_UNNEEDED


# --- alphabets mixed within a word -------------------------------------------------------------------------------

_CYRILLIC_LOOKALIKE: Final = "".join(letter for letter in _LOOKALIKES if letter > "\u0400")
_GREEK_LOOKALIKE: Final = "".join(letter for letter in _LOOKALIKES if letter < "\u0400")
_MIXED_CYRILLIC: Final = re.compile(rf"[A-Za-z][{_CYRILLIC_LOOKALIKE}]|[{_CYRILLIC_LOOKALIKE}][A-Za-z]")
_WORDS_WITH_BOTH: Final = re.compile(r"[A-Za-z\u0400-\u052f]{3,}+")
# IFNγ and NFκB are words of their science
_MIXED_GREEK: Final = re.compile(
    rf"[a-z][{_GREEK_LOOKALIKE}][A-Za-z]|[A-Za-z][{_GREEK_LOOKALIKE}][a-z]"
    rf"|\b[{_GREEK_LOOKALIKE}][a-z]{{2}}|[a-z]{{2}}[{_GREEK_LOOKALIKE}]\b"
)
_SYMBOL_WORD: Final = re.compile(
    rf"[\U0001d400-\U0001d7ff]{{4,}}|[\u24b6-\u24e9]{{3,}}|[{_SMALL_CAPITALS}]{{4,}}|[\U0001f130-\U0001f189]{{4,}}"
)
_OTHER_LETTER: Final = re.compile(
    rf"[\u0370-\u052f{_SMALL_CAPITALS}\u24b6-\u24e9\uff21-\uff5a\U0001d400-\U0001d7ff\U0001f130-\U0001f189]"
)
_WIDE_WORD: Final = re.compile("[\uff21-\uff3a\uff41-\uff5a]{3,}")
_EAST_ASIAN: Final = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_CYRILLIC: Final = re.compile("[\u0400-\u052f]")
_LATIN: Final = re.compile("[A-Za-z]")

# In a text in Cyrillic letters one Latin c inside a word is a slip: it shares its key with the Cyrillic one.
_MAX_SLIPS: Final = 1


def _mixes_alphabets(text: str) -> bool:
    if text.isascii() or not _OTHER_LETTER.search(text):
        return False
    if _SYMBOL_WORD.search(text) or _MIXED_GREEK.search(text):
        return True
    if _WIDE_WORD.search(text) and not _EAST_ASIAN.search(text):
        return True
    if not _MIXED_CYRILLIC.search(text):
        return False
    words = [word for word in _WORDS_WITH_BOTH.findall(text) if _MIXED_CYRILLIC.search(word)]
    if len(_LATIN.findall(text)) > len(_CYRILLIC.findall(text)):
        return bool(words)
    return sum(len(_MIXED_CYRILLIC.findall(word)) > 1 for word in words) > _MAX_SLIPS


# --- code --------------------------------------------------------------------------------------------------------

_ADDRESS: Final = re.compile(r"(?:https?://|www\.)\S{1,2000}+", re.IGNORECASE)
_BASE64: Final = re.compile(r"(?<![\w+/=-])[A-Za-z0-9+/-]{16,}+={0,2}")
_HEXADECIMAL: Final = re.compile(r"\b[0-9a-fA-F]{16,}+\b|\b(?:[0-9a-fA-F]{2}[\s,:]{1,2}){11,}[0-9a-fA-F]{2}\b")
_BINARY: Final = re.compile(r"(?:\b[01]{8}\b\s{0,2}){5,}")
_ESCAPES: Final = re.compile(r"(?:%[0-9a-f]{2}|\\u[0-9a-f]{4}|\\x[0-9a-f]{2}|&#x?[0-9a-f]{2,6};){6,}", re.IGNORECASE)
_LONG_BASE64: Final = 60
_LONG_HEXADECIMAL: Final = 40
_MIN_READABLE: Final = 0.9


def _carries_code(text: str) -> bool:
    text = _ADDRESS.sub(" ", text)
    if _phrase_signs(_NOT_ASCII.sub(" ", text).translate(_ROT13)):
        return True
    if _ESCAPES.search(text) or _BINARY.search(text):
        return True
    return any(_is_base64(run[0]) for run in _BASE64.finditer(text)) or any(
        _is_hexadecimal(run[0]) for run in _HEXADECIMAL.finditer(text)
    )


def _is_base64(run: str) -> bool:
    digits = run.rstrip("=")
    if len(digits) >= _LONG_BASE64 and all(re.search(kind, digits) for kind in ("[A-Z]", "[a-z]", "[0-9]")):
        return True
    try:
        return _is_readable(base64.b64decode(digits[: len(digits) // 4 * 4], altchars=b"-/"))
    except binascii.Error:
        return False


def _is_hexadecimal(run: str) -> bool:
    digits = re.sub(r"[\s,:]", "", run)
    if not re.search("[a-fA-F]", digits) or not re.search("[0-9]", digits):
        return False
    return len(digits) >= _LONG_HEXADECIMAL or _is_readable(bytes.fromhex(digits[: len(digits) // 2 * 2]))


def _is_readable(data: bytes) -> bool:
    """Whether bytes are words: letters and spaces, with at least one space."""
    letters = sum(byte == 0x20 or chr(byte).isalpha() for byte in data if byte < 0x80)
    return b" " in data and letters >= _MIN_READABLE * len(data)
