"""The settings: from arguments, the environment and a file, each with where it came from.

What is said later wins: the defaults, the file ``tallymark.toml`` (or ``[tool.tallymark]`` of ``pyproject.toml``) in
the current folder, the variables ``METRICS_DATABASE``, ``METRICS_LOG_FILE``, ``METRICS_RETENTION_DAYS`` and
``ENABLE_METRICS``, the variables ``TALLYMARK_…``, arguments. A setting is taken from one place as a whole: lists and
tables are not merged. An empty variable counts as none.
"""

import difflib
import functools
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
)

from tallymark import log
from tallymark.environment import is_off
from tallymark.errors import ConfigError
from tallymark.location import MASK, STATE_VARIABLE, local_folder, mask_url, shown
from tallymark.model import MAX_NAME_LENGTH
from tallymark.privacy import RULES

PREFIX: Final = "TALLYMARK_"
FILE: Final = "tallymark.toml"
PROJECT_FILE: Final = "pyproject.toml"

OTHER_NAMES: Final = {
    "METRICS_DATABASE": "store",
    "METRICS_LOG_FILE": "log_file",
    "METRICS_RETENTION_DAYS": "retention_days",
    "ENABLE_METRICS": "enabled",
}
"""Variables that mean a setting too, where its own is not set."""

NO_SETTINGS: Final = frozenset(
    {"TALLYMARK_CONFIG", "TALLYMARK_DEBUG", "TALLYMARK_PURE_PYTHON", "TALLYMARK_SOAK", STATE_VARIABLE}
)
"""Variables that begin like those of settings and are none."""

URLS: Final = frozenset({"redis", "postgres", "broker"})
"""Secrets of which only a part is masked."""

PII_ACTIONS: Final = ("mask", "reject", "allow")

BROKERS: Final = frozenset(
    (
        *("amqp", "amqps", "pyamqp", "librabbitmq", "redis", "rediss", "sentinel", "memory", "filesystem", "sqs"),
        *("confluentkafka", "kafka", "mongodb", "zookeeper", "sqlalchemy", "sqla", "slmq", "qpid", "consul", "etcd"),
        *("azurestoragequeues", "azureservicebus", "pyro", "gcpubsub", "pgmq"),
    )
)
"""What the URL of a broker may begin with: what Celery knows by name. Others it imports by a name with dots."""

# As the drivers have them, who tell capitals from small letters.
_REDIS_URL: Final = re.compile(r"(redis|rediss|unix)://").match
_POSTGRES_URL: Final = re.compile(r"postgres(ql)?://|\s*\w+\s*=").match
_BROKER_URL: Final = re.compile(r"\s*([A-Za-z][A-Za-z0-9.-]*)(\+[A-Za-z0-9+.-]+)?://").match

# What leads from one URL of a list to the next: a password and a list of hosts may hold a comma too.
_BETWEEN_URLS: Final = re.compile(r",\s*(?=[A-Za-z][A-Za-z0-9+.-]*://)")


def _listed(value: object, between: str | re.Pattern[str] = ",") -> object:
    """The values of a text: JSON, or with commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return _from_json(value)
    return [part.strip() for part in re.split(between, value) if part.strip()]


def _listed_urls(value: object) -> object:
    return _listed(value, _BETWEEN_URLS)


def _paired(value: object) -> object:
    """The pairs of a text: JSON, or ``name=value`` with commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("{"):
        return _from_json(value)
    pairs = [part.partition("=") for part in value.split(",") if part.strip()]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError("must be JSON, or name=value with commas")
    return {name.strip(): given.strip() for name, _, given in pairs}


def _from_json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("begins like JSON and is none") from None


def _switched(value: object) -> object:
    """A switch as the recorder reads it, which has no settings."""
    if not isinstance(value, str):
        return value
    return False if is_off(value) else value.strip()


def _check_redis(url: SecretStr) -> SecretStr:
    if not _REDIS_URL(url.get_secret_value()):
        raise ValueError("must begin with redis://, rediss:// or unix://")
    return url


def _check_postgres(url: SecretStr) -> SecretStr:
    if not _POSTGRES_URL(url.get_secret_value()):
        raise ValueError("must begin with postgresql:// or postgres://, or be host=… dbname=…")
    return url


def _check_broker(url: SecretStr) -> SecretStr:
    kinds = [_BROKER_URL(part) for part in url.get_secret_value().split(";")]
    if not all(kind and (kind[1].lower() in BROKERS or "." in kind[1]) for kind in kinds):
        raise ValueError("must begin with amqp://, redis:// or another kind of broker that Celery knows")
    return url


def _path_text(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


Switch = Annotated[bool, BeforeValidator(_switched)]
Texts = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_listed)]
Secrets = Annotated[tuple[SecretStr, ...], BeforeValidator(_listed)]
RedisUrls = Annotated[tuple[Annotated[SecretStr, AfterValidator(_check_redis)], ...], BeforeValidator(_listed_urls)]
PostgresUrls = Annotated[
    tuple[Annotated[SecretStr, AfterValidator(_check_postgres)], ...], BeforeValidator(_listed_urls)
]
BrokerUrl = Annotated[SecretStr, AfterValidator(_check_broker)]
Days = Annotated[float, Field(ge=0, le=36_500, allow_inf_nan=False)]


class Settings(BaseModel):
    """Everything that can be set. Arguments win over the environment, and that over the file.

    Raises:
        ConfigError: a value or a name is not valid, or the file is not; the message names the setting, the rule, and
            where the value came from, and never the value.
    """

    # Not pydantic-settings: it does not say where a value came from, and its import alone takes twice that of pydantic.
    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: Switch = Field(True, description="Whether anything is recorded at all.")
    store: Annotated[str, Field(min_length=1), BeforeValidator(_path_text)] = Field(
        "./metrics", description="The folder, or the URL, that records go to and are read from."
    )
    service: Annotated[str, Field(max_length=MAX_NAME_LENGTH, pattern=r"\S")] | None = Field(
        None, description="Which application this is; by default the name of the program."
    )
    host: Annotated[str, Field(min_length=1)] = Field(
        "127.0.0.1",
        description="The address that the server listens on; any that is not this machine's own needs keys.",
    )
    port: int = Field(7070, ge=0, le=65_535, description="Where dashboard and API answer; 0 takes a free port.")
    keys: Secrets = Field((), description="Keys of the server; a client must send one of them.")
    allowed_hosts: Texts | None = Field(
        None, description="Names in the Host header that the server answers, `*` for any; by default its own."
    )
    max_body_bytes: int = Field(
        8 * 1024 * 1024, ge=1, description="Largest body of a request to the server, packed and unpacked."
    )
    collect_system: Switch = Field(
        True, description="Whether the server records CPU, memory, disk and network of its machine."
    )
    collect_seconds: float = Field(
        5.0, ge=0.1, le=86_400, allow_inf_nan=False, description="Seconds between two looks of a collector."
    )
    redis: RedisUrls = Field((), description="URLs of the Redis servers that are followed.")
    postgres: PostgresUrls = Field((), description="URLs of the PostgreSQL databases that are followed.")
    broker: BrokerUrl | None = Field(None, description="URL of the broker of Celery.")
    queues: Texts = Field((), description="Queues of Celery whose depth is followed.")
    retention_days: Days = Field(
        30.0, description="Older records are forgotten by the server, after so many days; 0 keeps them all."
    )
    retention: Annotated[dict[str, Days], BeforeValidator(_paired)] = Field(
        {}, description="Other days for some metric types."
    )
    log_file: Path | None = Field(
        None, description="Where the structured log goes; by default `logs/metrics.jsonl` in the store."
    )
    pii: Literal["mask", "reject", "allow"] | dict[str, str] = Field(
        "mask",
        description="What becomes of texts that look like a secret or a person: `mask`, `reject` or `allow`, or one of "
        "them for each rule.",
    )
    pseudonym_key: SecretStr | None = Field(None, description="The key that ids of users become pseudonyms with.")
    raw_ids: Switch = Field(False, description="Whether ids of users are stored as they are.")
    slow_stage_ms: float = Field(
        10_000, gt=0, allow_inf_nan=False, description="The mean duration (ms) from which a stage is called slow."
    )
    correction_rate_percent: float = Field(
        30, ge=0, le=100, allow_inf_nan=False, description="The share of corrected answers (%) that is called high."
    )

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    def __init__(self, **values: Any) -> None:
        found = _found(values)
        refused = ""
        try:
            super().__init__(**{name: value for name, (value, _) in found.items()})
        except ValidationError as error:
            refused = _refusal(error, {name: origin for name, (_, origin) in found.items()})
        # Not within the block: pydantic's error holds the values, and would be this one's context.
        if refused:
            raise ConfigError(refused)
        self._origins.update((name, origin) for name, (_, origin) in found.items())

    @field_validator("pii", mode="before")
    @classmethod
    def _check_pii(cls, value: object) -> object:
        if value in PII_ACTIONS:
            return value
        if not isinstance(value, str) or "=" in value or value.lstrip().startswith("{"):
            value = _paired(value)
        if not isinstance(value, Mapping) or not all(map(_is_rule, value.items())):
            raise ValueError(f"must be mask, reject or allow, or one of them for some of the rules {', '.join(RULES)}")
        return value

    @property
    def log_path(self) -> Path:
        """Where the structured log goes.

        Raises:
            ConfigError: it would go into the store, and that is no folder.
        """
        return self.log_file or local_folder(self.store) / "logs" / "metrics.jsonl"

    def origin(self, name: str) -> str:
        """Where a setting came from: ``argument``, ``environment variable …``, ``file …`` or ``default``."""
        return self._origins.get(name, "default")

    def shown(self, name: str) -> Any:
        """The value of a setting as it may be seen: as JSON has it, with secrets masked."""
        value = getattr(self, name)
        if name == "store":
            return shown(value)
        return _shown(value, mask_url if name in URLS else _mask)

    def __repr_args__(self) -> Iterable[tuple[str, Any]]:
        return [(name, self.shown(name)) for name in type(self).model_fields]


@functools.cache
def settings() -> Settings:
    """The settings of this process, read once.

    Raises:
        ConfigError: as :class:`Settings`.
    """
    return Settings()


Found = dict[str, tuple[Any, str]]
"""Values with their origins, by the names of the settings."""


def _found(arguments: Mapping[str, Any]) -> Found:
    _check_names(arguments, "")
    given: Found = {name: (value, "argument") for name, value in arguments.items()}
    return _in_file() | _in_environment() | given


def _in_environment() -> Found:
    known = {PREFIX + name.upper(): name for name in Settings.model_fields}
    for variable in os.environ:
        if variable.startswith(PREFIX) and variable not in known and variable not in NO_SETTINGS:
            _warn_of(variable, _hint(variable, known))
    found: Found = {
        name: (os.environ[variable], f"environment variable {variable}")
        for variable, name in OTHER_NAMES.items()
        if os.environ.get(variable)
    }
    for variable, name in known.items():
        if os.environ.get(variable):
            found[name] = (os.environ[variable], f"environment variable {variable}")
    return found


@functools.cache
def _warn_of(variable: str, hint: str) -> None:
    log.warning("the environment variable %s means nothing%s", variable, hint)


def _in_file() -> Found:
    path = _file()
    if path is None:
        return {}
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"the settings cannot be read from {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    if path.name == PROJECT_FILE:
        tool = content.get("tool", {})
        content = tool.get("tallymark", {}) if isinstance(tool, dict) else {}
        if not isinstance(content, dict):
            raise ConfigError(f"tool.tallymark must be a table, in {path}")
    _check_names(content, f", in {path}")
    return {name: (value, f"file {path}") for name, value in content.items()}


def _file() -> Path | None:
    """The file with the settings; there need not be one, unless it was named."""
    named = os.environ.get("TALLYMARK_CONFIG")
    if named:
        return Path(named).absolute()
    return next((path for path in (Path(FILE).absolute(), Path(PROJECT_FILE).absolute()) if path.is_file()), None)


def _check_names(values: Iterable[str], where: str) -> None:
    for name in values:
        if name not in Settings.model_fields:
            raise ConfigError(f"there is no setting {name!r}{where}{_hint(name, Settings.model_fields)}")


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; hint: did you mean {near[0]}?" if near else ""


def _refusal(error: ValidationError, origins: Mapping[str, str]) -> str:
    """What is wrong, without the value."""
    problems = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        name, *within = map(str, problem["loc"])
        rule = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        problems.append(f"{'.'.join([name, *within])} {rule[:1].lower()}{rule[1:]} ({origins[name]})")
    return "; ".join(problems)


def _is_rule(pair: tuple[object, object]) -> bool:
    return pair[0] in RULES and pair[1] in PII_ACTIONS


def _shown(value: Any, mask: Callable[[str], str]) -> Any:
    if isinstance(value, SecretStr):
        return mask(value.get_secret_value())
    if isinstance(value, tuple):
        return [_shown(item, mask) for item in value]
    return str(value) if isinstance(value, Path) else value


def _mask(secret: str) -> str:
    return MASK
