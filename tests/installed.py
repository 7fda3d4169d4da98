"""A package with reward functions, installed for a test: its modules and its metadata in a folder of their own."""

from __future__ import annotations

from pathlib import Path

BREVITY = "def reward(prompts, completions):\n    return [-float(len(text)) for text in completions]\n"


def install(
    site: Path,
    functions: dict[str, str],
    *,
    package: str = "my_rewards",
    version: str = "1.2.0",
    group: str = "prefopt.rewards",
    function: str = "reward",
) -> Path:
    """Writes a package into a folder that is, or will be, on Python's path.

    Args:
        site: The folder.
        functions: Name → source of a module with a function.
        group: Of entry points.
        function: Its name.
        package: Name of the package and of the distribution.
        version: Of the distribution.

    Returns:
        The package's folder.
    """
    folder = site / package
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").write_text("")
    for name, source in functions.items():
        (folder / f"{name}.py").write_text(source)
    info = site / f"{package}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    entries = "".join(f"{name} = {package}.{name}:{function}\n" for name in functions)
    (info / "entry_points.txt").write_text(f"[{group}]\n{entries}")
    return folder
