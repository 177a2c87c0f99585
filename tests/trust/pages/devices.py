"""The section of docs/reliability.md on devices and processes."""

TITLE = "Many devices, several processes"


def section(rows: list[dict], outcome: dict) -> str:
    """Says what was trained and compiled for many devices, and how far apart it was."""
    asked = {
        name: [row for row in rows if row["asked"] == name]
        for name in ("training", "halos", "compare", "errors")
    }
    lines = [
        "The network of `jaxpool compare` is trained on 8 virtual CPU devices, in "
        "one process and in two that meet over the loopback, and compared with one "
        "device: losses, for each unit of the largest, and parameters, for each "
        "unit of how far Adam can have moved them. Of the methods max, avg, lp, "
        "gem_learned, stochastic, adaptive_avg and blur logits and parameters count "
        "as losses do. They may differ by a few roundings, or, where training is "
        "sensitive, by what eight times a change of the images' last bits does to one "
        "device. Pools of arrays with split height are compiled, and the "
        "program is searched for what it moves between devices. "
        "[distribution.md](distribution.md) says how to use "
        "both.",
        "",
        "| training | processes | methods | losses | parameters | gather maps |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    groups: dict = {}
    for row in asked["training"]:
        groups.setdefault((row["layout"], row["processes"]), []).append(row)
    for (layout, processes), group in sorted(groups.items()):
        far = max(row["distance"] for row in group)
        strayed = max(row["strayed"] for row in group)
        methods = {row["method"] for row in group}
        gathering = {r["method"] for r in group if r["gathered"]}
        names = f"{len(gathering)} ({', '.join(sorted(gathering))})" if gathering else 0
        lines.append(
            f"| {layout} | {processes} | {len(methods)} | {far:.1e} | {strayed:.1e} "
            f"| {names} |"
        )
    lines += [
        "",
        "| pools of split arrays | programs | farthest | only halos move |",
        "| --- | ---: | ---: | ---: |",
    ]
    forms: dict = {}
    for row in asked["halos"]:
        forms.setdefault(row["form"], []).append(row)
    for form, group in sorted(forms.items()):
        far = max(row["deviation"] for row in group)
        halos = sum(set(r["collectives"]) <= {"collective-permute"} for r in group)
        name = "`sharded`" if form == "sharded" else f'`lowering("{form}")`'
        lines.append(f"| {name} | {len(group)} | {far:.1e} | {halos} |")
    lines += [
        "",
        f"`jaxpool compare` in two processes was compared with one process of two "
        f"devices {len(asked['compare'])} times, and ended by an error in one of them "
        f"{len(asked['errors'])} times: both ended. Not proved: speed, real networks "
        "between hosts, and GPUs and TPUs, of which there were none.",
    ]
    return "\n".join(lines) + "\n"
