"""The part of README.md on ARM under emulation: from results/aarch64.json to Markdown. No measurement."""

from __future__ import annotations

from findings import markdown, result


def aarch64_table() -> str:
    document = result("aarch64")
    found = document["results"]
    emulated, packages = found["emulated"], found["emulated"]["packages"]
    rows = []
    for name, part in found["tests"].items():
        failed = len(part["failed"]) + len(part["failed_by_emulation"])
        rows.append((f"tests: {name}", f"{part['passed']:,} passed, {failed} failed, {len(part['skipped'])} skipped"))
    for core, one in found["vectors"].items():
        for precision, each in one["of"].items():
            nearness = f"to fp32 {each['cosine_to_fp32']['least']:.7f}, to x86 {each['cosine_to_x86']['least']:.7f}"
            same = f"same in another process {each['same_in_another_process']}, other bytes in a batch"
            what = f"vectors: {core}, {precision}, {each['texts']} texts, least cosine"
            rows.append((what, f"{nearness}; {same} {each['other_bytes_in_a_batch']}"))
    failures = [
        f"* failed: `{name}`: {why}"
        for part in found["tests"].values()
        for name, why in {**part["failed"], **part["failed_by_emulation"]}.items()
    ]
    skipped = [f"* skipped: `{name}`: {why}" for part in found["tests"].values() for name, why in part["skipped"].items()]
    left_out = [f"* not run: {name}: {why}" for name, why in found["left_out"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    about = f"{emulated['machine']}, {found['emulator']}, Python {emulated['python']}, {versions}, {document['date']}."
    return "\n".join([markdown(("what", "found"), rows), "", *failures, *skipped, *left_out, "", about, ""])
