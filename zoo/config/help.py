"""What `--help` prints: a command's own YAML, its comments, and what can be chosen. Hydra's would take a second."""

from zoo.config.catalogue import CONFIGS, folders, options


def text(config_name: str) -> str:
    """The head of a command's YAML, the choices of its groups, its keys with their comments."""
    import yaml

    path = CONFIGS / f"{config_name}.yaml"
    lines = path.read_text().splitlines()
    head = [line[2:] for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]]
    start = lines.index("  - _self_")
    body = lines[lines.index("", start) + 1 : lines.index("hydra:")]
    defaults = [entry for entry in yaml.safe_load(path.read_text())["defaults"] if isinstance(entry, dict)]
    named = {
        key.removeprefix("optional ").split("@")[0]
        for entry in defaults
        for key in entry
        if "override" not in key
    }
    groups = [*sorted(named), *sorted(brought())] if "model" in named else sorted(named)
    width = max(map(len, groups))
    chosen = [f"  {group:{width}}  {', '.join(options(group))}" for group in groups if options(group)]
    keys = [f"  {line}" for line in body if line.strip()]
    return "\n".join([*head, "", "Choices, group=option:", *chosen, "", "Keys, key=value:", *keys])


def brought() -> set[str]:
    """The groups that a choice brings along, as a transformer brings mixer and position."""
    return {
        part.split("@")[0]
        for folder in folders()
        for path in folder.glob("*/*.yaml")
        for part in path.read_text().split("- /")[1:]
        if "@_global_" in part.split("\n")[0]
    }
