"""The container file, read: no engine may be here."""

import json
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]


def steps() -> list[tuple[str, str]]:
    """Return instruction and argument of every line of the container file."""
    text = (ROOT / "deploy" / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def test_it_runs_emdn_deploy_by_no_root_and_copies_what_is_there() -> None:
    last = max(at for at, (kind, _) in enumerate(steps()) if kind == "FROM")
    final = steps()[last:]
    user = dict(final)["USER"]
    assert ("RUN", f"useradd --create-home {user}") in final
    assert json.loads(dict(final)["ENTRYPOINT"]) == ["emdn-deploy"]
    # What comes after runs as that user, and installs nothing.
    assert "RUN" not in dict(final[final.index(("USER", user)) :])
    for kind, argument in steps():
        if kind == "COPY" and not argument.startswith("--from="):
            assert all((ROOT / name).exists() for name in shlex.split(argument)[:-1])
