"""What fetching shares: where things are kept, and commands that end or say why not."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".real_cache"
LIMIT_S = 600


def run(*command: str, folder: Path = ROOT) -> None:
    """Raises OSError with the last words of a command that fails, TimeoutExpired."""
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")
