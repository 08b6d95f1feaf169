"""The command line, `para`: arguments in, tables out; the work is the library's."""

import argparse
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import para_jax as para
from para_jax import tables
from para_jax.compress import cut, spectra_of
from para_jax.formats import directory, recognise
from para_jax.inspection import inspect
from para_jax.report import human_bytes

_POLICIES = {
    "gamma": (para.Gamma, "keep this share of all ranks, in (0, 1]"),
    "rank": (para.Rank, "keep this many ranks a module, on average"),
    "epsilon": (para.Epsilon, "keep this share of the energy, in (0, 1]"),
    "threshold": (para.Threshold, "keep the singular values from this one up"),
    "params": (para.Params, "keep at most so many parameters, such as 100k"),
    "bytes": (para.Bytes, "keep at most so many bytes of factors, such as 1.5MB"),
}
_EXAMPLES = """examples:
  para inspect adapter/                              what is in it
  para compress adapter/ small/ --gamma 0.25         a quarter of the ranks
  para compress adapter/ small/ --epsilon 0.99 --max-rank 8 --profile padded
  para sweep adapter/ children/ --gamma 0.5 0.25 0.125 --epsilon 0.9
  para convert checkpoint/ adapter/ --format peft    Orbax to PEFT, or back
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0, 2 for a user's mistake, 1 for a failure."""
    given = _parser().parse_args(arguments)
    try:
        _start()
        given.run(given)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # As when the output goes to `head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if given.debug:
            raise
        print(f"para: {_sentence(error)}", file=sys.stderr)
        mistakes = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError)
        return 2 if isinstance(error, mistakes) else 1
    return 0


def _compress(given: argparse.Namespace) -> None:
    (policy,) = _policies(given)
    directory.check_target(given.target, overwrite=given.overwrite)
    parent = _load(given)
    with tables.busy(f"Decomposing {len(parent.adapters)} modules"):
        child = para.compress(parent, policy, method=given.method, dtype=given.dtype)
    _save(given, child, given.target)
    if given.report:
        given.report.write_text(json.dumps(child.report.as_dict(), indent=1) + "\n")
    if given.plot:
        _plot(given.plot, "rank_map", child.report)
    if given.json:
        print(json.dumps(child.report.as_dict()))
        return
    print(child.report)
    print(f"Written to {given.target}, {_on_disk(given.target)} on disk.")


def _inspect(given: argparse.Namespace) -> None:
    checkpoint = _load(given)
    with tables.busy(f"Decomposing {len(checkpoint.adapters)} modules"):
        found = inspect(checkpoint, method=given.method)
    if given.plot:
        _plot(given.plot, "spectrum", found.report)
    if given.json:
        print(json.dumps(found.as_dict()))
    else:
        tables.inspection(found)


def _sweep(given: argparse.Namespace) -> None:
    policies = _policies(given)
    targets = [given.target / x.name.replace(" ", "-") for x in policies]
    for target in targets:
        directory.check_target(target, overwrite=given.overwrite)
    parent = _load(given)
    with tables.busy(f"Decomposing {len(parent.adapters)} modules"):
        spectra = spectra_of(parent, method=given.method)
    rows = []
    pairs = zip(policies, targets, strict=True)
    for policy, target in tables.progress(pairs, len(targets), "Writing"):
        child = cut(parent, spectra, policy, dtype=given.dtype)
        _save(given, child, target)
        rows.append((target, child.report))
    if given.json:
        print(json.dumps({str(path): report.summary() for path, report in rows}))
    else:
        tables.children([(path.name, report, _on_disk(path)) for path, report in rows])
        print(f"Written to {given.target}.")


def _convert(given: argparse.Namespace) -> None:
    directory.check_target(given.target, overwrite=given.overwrite)
    checkpoint = _load(given)
    _save(given, checkpoint, given.target)
    print(
        f"{len(checkpoint.adapters)} adapters written to {given.target}, "
        f"{_on_disk(given.target)} on disk."
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="para",
        description="Compress LoRA adapters after training: PARA, in JAX.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=para.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_compress(
        _command(commands, "compress", _compress, "write one smaller adapter")
    )
    _add_inspect(_command(commands, "inspect", _inspect, "show what an adapter holds"))
    _add_sweep(_command(commands, "sweep", _sweep, "write one adapter a budget"))
    _add_output(_command(commands, "convert", _convert, "write it in another format"))
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}. See {self.prog} --help.\n")


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], what: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    command.add_argument(
        "source", metavar="SRC", type=pathlib.Path, help="a PEFT folder, or Orbax's"
    )
    command.add_argument(
        "--scale",
        type=float,
        help="alpha / r of an Orbax checkpoint that another program wrote",
    )
    command.add_argument(
        "--debug", action="store_true", help="show the traceback of a failure"
    )
    return command


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("target", metavar="DST", type=pathlib.Path, help="to write")
    add = command.add_argument
    add("--format", choices=("peft", "orbax"), help="of DST (default: that of SRC)")
    add(
        "--profile",
        choices=("ragged", "padded"),
        default="ragged",
        help="of PEFT: each module its own rank (default), or zeros up to one rank",
    )
    add("--overwrite", action="store_true", help="replace an adapter that is there")


def _add_compress(command: argparse.ArgumentParser) -> None:
    _add_output(command)
    _add_cut(command)
    budget = command.add_mutually_exclusive_group(required=True)
    for name, (_, what) in _POLICIES.items():
        budget.add_argument(f"--{name}", type=_number, metavar="X", help=what)
    command.add_argument("--report", type=pathlib.Path, metavar="FILE.json")
    command.add_argument("--plot", type=pathlib.Path, metavar="FILE.png")


def _add_sweep(command: argparse.ArgumentParser) -> None:
    _add_output(command)
    _add_cut(command)
    for name, (_, what) in _POLICIES.items():
        command.add_argument(
            f"--{name}", type=_number, nargs="+", metavar="X", help=what
        )


def _add_inspect(command: argparse.ArgumentParser) -> None:
    _add_method(command)
    command.add_argument("--plot", type=pathlib.Path, metavar="FILE.png")


def _add_method(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--method", choices=("auto", "qr", "gram"), default="auto", help="of the SVD")
    add("--json", action="store_true", help="print JSON instead of a table")


def _add_cut(command: argparse.ArgumentParser) -> None:
    _add_method(command)
    add = command.add_argument
    add("--scope", choices=("global", "local"), default="global", help="of the budget")
    add("--min-rank", type=int, default=0, metavar="R", help="of every module")
    add("--max-rank", type=int, metavar="R", help="of any module")
    add("--multiple-of", type=int, default=1, metavar="Q", help="for all ranks")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="(default: as is)")


def _policies(given: argparse.Namespace) -> list[para.Policy]:
    limits = {
        name: getattr(given, name)
        for name in ("scope", "min_rank", "max_rank", "multiple_of")
    }
    found: list[para.Policy] = []
    for name, (policy, _) in _POLICIES.items():
        values = getattr(given, name)
        values = values if isinstance(values, list) else [values]
        found += [policy(value, **limits) for value in values if value is not None]
    if not found:
        raise ValueError(f"Name a budget: {', '.join(f'--{x}' for x in _POLICIES)}.")
    return found


def _number(text: str) -> float:
    """Returns the value of `0.25`, `100k` or `1.5MB`, in powers of 1000."""
    match = re.fullmatch(r"([-+.0-9e]+) *([kMG]?)B?", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number")
    value = float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[match[2]]
    return int(value) if value == int(value) else value


def _start() -> None:
    """Sets JAX up for a short run: compiled programs are kept between runs."""
    # Before JAX looks for devices: a small job takes no three quarters of a GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update(
            "jax_compilation_cache_dir", str(pathlib.Path(home, "para_jax"))
        )
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _load(given: argparse.Namespace) -> para.Checkpoint:
    with tables.busy(f"Reading {given.source}"):
        return para.load(given.source, scale=given.scale)


def _save(
    given: argparse.Namespace, checkpoint: para.Checkpoint, target: pathlib.Path
) -> None:
    with tables.busy(f"Writing {target}"):
        para.save(
            checkpoint,
            target,
            format=given.format or recognise(given.source),
            profile=given.profile,
            overwrite=given.overwrite,
        )


def _plot(path: pathlib.Path, picture: str, report: para.Report) -> None:
    from para_jax import plot

    getattr(plot, picture)(report).savefig(path, dpi=150)


def _on_disk(folder: pathlib.Path) -> str:
    files = (x for x in folder.rglob("*") if x.is_file())
    return human_bytes(sum(x.stat().st_size for x in files))


def _sentence(error: Exception) -> str:
    """Returns one line that says what went wrong."""
    if isinstance(error, ModuleNotFoundError):
        return f"this needs {error.name}: pip install 'para-jax[cli,plot]'."
    if isinstance(error, OSError) and error.strerror:
        return f"'{error.filename}': {error.strerror}."
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (ValueError, OSError)):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


if __name__ == "__main__":
    sys.exit(main())
