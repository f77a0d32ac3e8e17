"""reports.py FOLDER: the reports of sanitizers and of valgrind in it that have a frame of Millrace, each kind once, with how often it was seen."""
import re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# A source file, an object or a name of ours; of valgrind's frames, which have no path, the file's name.
OURS = re.compile(r"/(?:extension|ingest|tests)/[\w/]+\.[ch]:\d+|millrace(?:\.so)?\+0x|\(in \S*/millrace(?:\.so)?\)|\bin mrc?_\w+|: mrc?_\w+|planted_|"
                  r"\((?:" + "|".join(sorted({re.escape(f.name) for d in ("extension", "extension/core", "ingest", "tests/unit") for f in (ROOT / d).glob("*.c")})) + r"):\d+\)")
found = {}
for path in sorted(Path(sys.argv[1]).glob("*")):
    text = path.read_text(errors="replace")
    if path.name.startswith("memcheck"):
        text = re.sub(r"^(?:==|\*\*)\d+(?:==|\*\*) ?", "", text, flags=re.M)
        reports = re.split(r"\n\s*\n", text)
    elif "runtime error:" in text and "Sanitizer:" not in text:
        reports = re.split(r"(?m)^(?=\S.*runtime error:)", text)
    else:
        reports = re.split(r"(?m)^(?===+$|=+\d+=+ERROR|WARNING: ThreadSanitizer|.*runtime error:)", text)
    for report in reports:
        if not re.search(r"ERROR: \w+Sanitizer|WARNING: ThreadSanitizer|runtime error:|^\s+(?:at|by) 0x", report, re.M) or not OURS.search(report):
            continue
        # The same place is one kind, whatever process and address.
        key = re.sub(r"0x[0-9a-fA-F]+|pid=\d+|==\d+==|\(tid=\d+[^)]*\)|\d{5,}", "", "\n".join(report.strip().splitlines()[:8]))
        found.setdefault(key, [0, report.strip(), path.name])[0] += 1
for times, report, name in found.values():
    print(f"== {name}, seen {times} times\n{report}\n")
