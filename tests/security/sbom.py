"""Whether an SBOM holds exactly what a lock pins: `python -m tests.security.sbom LOCK SBOM`; else exit code 1."""

import json
import re
import sys
from pathlib import Path


def main(lock: str, sbom: str) -> int:
    pinned = set(re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", Path(lock).read_text("utf-8"), re.MULTILINE))
    components = json.loads(Path(sbom).read_text("utf-8"))["components"]
    listed = {(one["name"], one["version"]) for one in components}
    for name, version in sorted(pinned ^ listed):
        where = "the lock" if (name, version) in pinned else "the SBOM"
        sys.stderr.write(f"{name} {version} is in {where} alone\n")
    sys.stdout.write(f"{len(listed)} components, {len(pinned)} pins\n")
    return 0 if pinned and pinned == listed else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
