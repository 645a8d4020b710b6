"""The `lineament` command; each of its commands has its own `--help`."""

from __future__ import annotations

import sys
from importlib import import_module

from lineament import __version__
from lineament.landmarks.command import install_extra

COMMANDS = {
    "stream": ("lineament.stream.__main__", "98 landmarks on every face in a camera, stream, video or image"),
    "demo": ("lineament.demo.__main__", "the same in the browser, with an optional public link"),
    "engine": ("lineament.engines.build", "builds the fastest engines of a model for this machine"),
    "train": ("lineament.train.__main__", "trains a model on labelled faces"),
    "label": ("lineament.stream.label", "labels photos with the consensus of several models"),
    "bench": ("lineament.stream.bench", "measures frames per second, latency and jitter on this machine"),
}
"""by name: the module with its main(), and a description"""
_EXTRAS = {
    "gradio": "demo",
    "ray": "cluster",
    "torch": "train",
    "timm": "train",
    "onnx": "train",
    "onnxscript": "train",
}
"""the extra that installs a module"""


_BASH_COMPLETION = r"""
_lineament() {
  local name=${COMP_WORDS[1]} IFS=$' \n'
  if ((COMP_CWORD == 1)); then
    COMPREPLY=($(compgen -W "COMMANDS --help --version" -- "$name"))
    return
  fi
  if ! declare -F "_tyro_lineament_$name" >/dev/null; then
    eval "$(lineament "$name" --tyro-print-completion bash 2>/dev/null)"
    # that script completes `lineament` and the bare `$name`, too
    complete -r "$name" 2>/dev/null
    complete -o default -F _lineament lineament
    declare -F "_tyro_lineament_$name" >/dev/null || return 0
  fi
  COMP_WORDS=("${COMP_WORDS[@]:1}")
  ((COMP_CWORD--))
  "_tyro_lineament_$name"
  # tyro also returns the wrapped lines of a help text
  COMPREPLY=($(printf '%s\n' "${COMPREPLY[@]}" | grep -v ' '))
}
complete -o default -F _lineament lineament
"""
"""completes command names; tyro's script for a command completes its options and is loaded on first use"""


def main(args: list[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 success, 1 failure, 2 wrong arguments."""
    given = sys.argv[1:] if args is None else args
    match given:
        case [] | ["-h" | "--help"]:
            print(_usage())
            return 0
        case ["--version"]:
            print(f"lineament {__version__}")
            return 0
        case ["--completion"]:
            print(_BASH_COMPLETION.replace("COMMANDS", " ".join(COMMANDS)))
            return 0
        case [name, *rest] if name in COMMANDS:
            return _run(name, rest)
    print(f"error: unknown command {given[0]!r}\n\n{_usage()}", file=sys.stderr)
    return 2


def _run(name: str, args: list[str]) -> int:
    try:
        return int(import_module(COMMANDS[name][0]).main(args))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS:
            raise
        print(f"error: `lineament {name}` needs {missing}; run {install_extra(_EXTRAS[missing])}", file=sys.stderr)
        return 1


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: lineament COMMAND [OPTIONS]",
            "",
            *lines,
            "",
            "`lineament COMMAND --help` shows its options; `lineament --completion` prints Bash completion.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
