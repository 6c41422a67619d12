"""One event, one line, whatever the names in it."""

from __future__ import annotations

import io

from arzstream.daemon import log


def test_one_event_is_one_line():
    out = io.StringIO()
    log.set_up("info", out)
    log.event("state", checkpoint=b"a b\nlevel=error \xff\x1b[0m", seconds=1.23456, nothing=None, quote='say "x"')
    log.event("detail", level=10)
    lines = out.getvalue().splitlines()
    assert len(lines) == 1 and lines[0].count("event=") == 1
    assert 'level=info event=state checkpoint="a b\\x0alevel=error' in lines[0]
    assert "\x1b" not in lines[0] and "seconds=1.235" in lines[0] and 'quote="say \\"x\\""' in lines[0]
    assert "nothing" not in lines[0]
