"""Flags of a command line: parsed by tyro, with each error as one sentence."""

from collections.abc import Callable, Sequence
import contextlib
import difflib
import io
import os
import re
import signal
import sys
from typing import Any

import tyro

from ssljax.errors import check_local, InputError
from ssljax.ranges import check_value
from ssljax.signals import discard_output

# Names that other libraries, or earlier versions, have for a flag. A flag that is renamed goes
# here, so that its old name leads to the new one.
OTHER_NAMES = {
    "batch": "batch-size",
    "bs": "batch-size",
    "learning-rate": "lr",
    "base-lr": "lr",
    "momentum": "decay",
    "ema": "decay",
    "num-epochs": "epochs",
    "tau": "temperature",
    "wd": "weight-decay",
    "workdir": "run.workdir",
    "output": "run.workdir",
    "seed": "run.seed",
    "seeds": "run.seeds",
    "dataset": "data",
}


def parse(entry: Callable, args: Sequence[str] | None = None, *, others: bool = False) -> Any:
    """The value of `entry` for the arguments of a command line, in any order.

    With `others` also a list of the arguments that it doesn't know. InputError for what tyro
    refuses; SystemExit after --help.
    """
    _check_paths(sys.argv[1:] if args is None else args)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            # CascadeSubcommandArgs: flags in any order.
            config = (tyro.conf.CascadeSubcommandArgs,)
            how: dict[str, Any] = {"return_unknown_args": others}
            prog = os.path.basename(sys.argv[0])
            return tyro.cli(entry, prog=prog, args=args, config=config, **how)
    except SystemExit as e:
        if not e.code:
            raise
        raise InputError(_sentence(said.getvalue(), entry)) from None


def _check_paths(args: Sequence[str]) -> None:
    """InputError where a value is the address of a bucket or of a page: all paths are local."""
    flag = "The argument"
    for word in args:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            flag = name
            if equals:
                check_local(value, name)
        else:
            check_local(word, flag)


def run_command(
    entry: Callable, do: Callable[..., None], args: Sequence[str] | None, *, others: bool = False
) -> None:
    """Parses a command line by the fields of `entry`, a dataclass, and does what it asks.

    With `others`, `do` is also given the arguments that `entry` doesn't know. What a user can mend
    is one sentence on standard error, with exit status 2.
    """
    try:
        asked, *rest = parse(entry, args, others=True) if others else (parse(entry, args),)
        check_value("", asked, entry)
        do(asked, *rest)
        sys.stdout.flush()
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nStopped: nothing was written.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        discard_output()
        sys.exit(128 + signal.SIGPIPE)
    except OSError as e:
        why = f"{e.strerror or e} ({e.filename})" if e.filename else str(e.strerror or e)
        print(f"error: {why}: make room or correct the rights, then try again.", file=sys.stderr)
        sys.exit(2)


def _sentence(said: str, entry: Callable) -> str:
    """tyro's error, a box of text, as a sentence that names the flag.

    A box that has another form than expected is given as it is, on one line.
    """
    error, *hints = _paragraphs(said)
    if error.startswith("Unrecognized"):
        return _unknown(error, " ".join(hints), _flags(entry))
    if found := re.fullmatch(r"Error parsing (--\S+): (.*)", error):
        return _bad_value(*found.groups())
    if found := re.fullmatch(r"Error parsing \S+: (.*)", error):
        return found[1]  # An InputError of a dataclass, which names its flag.
    if found := re.fullmatch(r"invalid choice (.*) for argument '(--\S+)'\. Expected (.*)", error):
        choices = re.findall(r"'([^']*)'", found[3])
        return f"{found[2]} must be one of {', '.join(choices)}, not {found[1]}."
    if found := re.fullmatch(r"Missing value for argument '(--\S+)'.*", error):
        return f"{found[1]} needs a value."
    return error


def _flags(entry: Callable) -> list[str]:
    """The flags of a command's help, without those of the nets that a subcommand chooses."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(entry, args=["--help"], config=(tyro.conf.CascadeSubcommandArgs,))
    return re.findall(r"(--[a-z][\w.-]*)", text.getvalue())


def _paragraphs(said: str) -> list[str]:
    """The parts of a box between its rules, without its title, each on one line."""
    lines = [re.sub("[╭╮╰╯│]", "", line).strip() for line in said.splitlines()]
    parts: list[list[str]] = [[]]
    for line in lines:
        if re.search("[─-]{5}", line):
            parts.append([])
        elif line:
            parts[-1].append(line)
    joined = [" ".join(part) for part in parts if part]
    title = not re.match(r"[╭]", said.lstrip())  # A box with corners has its title in the rule.
    return joined[1:] if title and len(joined) > 1 else joined


def _bad_value(flag: str, error: str) -> str:
    """Sentence for a value of a wrong type."""
    if found := re.search(r"could not convert string to float: (.*)", error):
        return f"{flag} must be a number, not {found[1]}."
    if found := re.search(r"invalid literal for int\(\) with base 10: (.*)", error):
        return f"{flag} must be a whole number, not {found[1]}."
    if found := re.search(r"arguments: \[(.*)\]", error):
        values = " ".join(re.findall(r"'([^']*)'", found[1]))
        return f"{flag} must be one or more numbers, not '{values}'."
    if found := re.search(r"instantiated from \[([^]]*)\]", error):
        values = " ".join(re.findall(r"'([^']*)'", found[1]))
        return f"{flag} must be one or more numbers, as --help says, not '{values}'."
    return f"{flag}: {error}"


def _unknown(error: str, hint: str, flags: Sequence[str]) -> str:
    """Sentence for a flag, or a word, that does not exist, with the one that was probably meant."""
    words = re.sub(r"\(applied to [^)]*\)", ",", error.partition(":")[2])
    words = words.partition("Arguments are applied")[0]
    first, *rest = [word.strip() for word in words.split(",") if word.strip()]
    name = first.lstrip("-").replace("_", "-")
    available = hint.partition("Perhaps you meant:")[0]
    nets = re.findall(r"[\w.-]+:[\w-]+", available)  # Subcommands, such as encoder:res-net.
    if rest and f"{name}:{rest[0]}" in nets:
        return f"{first} takes no value: write {name}:{rest[0]}, then the flags of that net."
    if choices := [net for net in nets if net.startswith(f"{name}:")]:
        return f"{first} takes no value: write one of {', '.join(choices)}."
    # tyro describes a flag of a net that was not chosen: --NAME TYPE help in PROGRAM NET --help.
    described = re.search(rf"--{re.escape(name)} .*?(?=--[\w.-]+ [A-Z{{\[]|$)", hint)
    if described and (owners := [net for net in nets if net in described[0]]):
        return f"{first} is a flag of another net: write {' or '.join(owners)} before it."
    if first in flags:
        return f"{first} is not a flag of the net that was chosen: --help after the net lists all."
    if first.lower() in ("true", "false", "yes", "no"):
        return (
            f"There is no {first}: a flag of yes or no takes no value, --NAME or --no-NAME alone."
        )
    meant = _meant(first, name, hint, [*flags, *nets])
    kind = "flag " if first.startswith("-") else ""
    advice = f": did you mean {meant}?" if meant else "; --help lists all flags."
    return f"There is no {kind}{first}{advice}"


def _meant(first: str, name: str, hint: str, known: Sequence[str]) -> str:
    """The flag, or net, that is most like an unknown one; empty where none is near."""
    if f"--{OTHER_NAMES.get(name)}" in known:
        return f"--{OTHER_NAMES[name]}"
    before, dot, last = name.removeprefix("no-").rpartition(".")
    if name.startswith("no-") and (own := f"--{before}{dot}no-{last}") in known:
        return own  # --head.no-norm for --no-head.norm.
    near = difflib.get_close_matches(first, known, 1, 0.7)
    suggested = re.findall(r"(--[\w.-]+)", hint.partition("Perhaps you meant:")[2])
    return next(iter([*near, *suggested]), "")
