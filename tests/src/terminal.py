"""A terminal for tests: runs a command on it, and reports the content of the screen.

    terminal.py ROWS COLUMNS COMMAND ...

Standard input takes requests, and standard output returns one response per request, one line of JSON each: {"do": "look"},
{"do": "resize", "rows": 24, "columns": 80}, {"do": "type", "text": "..."}, {"do": "wait"} until the command has ended.
"""

import fcntl
import json
import os
import pty
import select
import struct
import sys
import termios

import pyte

rows, columns = int(sys.argv[1]), int(sys.argv[2])
screen = pyte.HistoryScreen(columns, rows, history=100_000, ratio=0.5)
stream = pyte.ByteStream(screen)
escapes = 0


def set_size(fd, rows, columns):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


child, terminal = pty.fork()
if child == 0:
    set_size(0, rows, columns)
    os.execvp(sys.argv[3], sys.argv[3:])
set_size(terminal, rows, columns)


def read():
    """Reads the output of the command. Returns false once the command has ended."""
    global escapes
    try:
        data = os.read(terminal, 65536)
    except OSError:
        return False
    escapes += data.count(b"\x1b")
    stream.feed(data)
    return bool(data)


def text(line):
    return "".join(line[column].data for column in range(screen.columns)).rstrip()


def look(status=None):
    return {
        "lines": [line.rstrip() for line in screen.display],
        "above_count": len(screen.history.top),
        # Only at the end, because there are many.
        "above": [] if status is None else [text(line) for line in screen.history.top],
        "row": screen.cursor.y,
        "column": screen.cursor.x,
        "is_cursor_hidden": screen.cursor.hidden,
        "escapes": escapes,
        "status": status,
    }


def answer(request):
    match request["do"]:
        case "resize":
            screen.resize(request["rows"], request["columns"])
            set_size(terminal, request["rows"], request["columns"])
        case "type":
            os.write(terminal, request["text"].encode())
        case "wait":
            while read():
                pass
            return look(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return look()


sources = [terminal, sys.stdin]
while True:
    ready = select.select(sources, [], [])[0]
    if terminal in ready and not read():
        sources.remove(terminal)
    if sys.stdin in ready:
        line = sys.stdin.readline()
        if not line:
            # The test has ended. When the terminal ends, the command gets SIGHUP.
            break
        print(json.dumps(answer(json.loads(line))), flush=True)
