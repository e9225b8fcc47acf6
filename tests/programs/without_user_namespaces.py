"""Runs a command where user namespaces are forbidden, as in most containers: without_user_namespaces.py COMMAND ..."""

import os
import sys
from pathlib import Path

from codekiln.evaluate.sandbox.namespaces import NEW_USER
from codekiln.evaluate.sandbox.syscalls import unshare

user, group = os.getuid(), os.getgid()
unshare(NEW_USER)
for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
    Path(f"/proc/self/{name}").write_text(text, encoding="ascii")
Path("/proc/sys/user/max_user_namespaces").write_text("0", encoding="ascii")
os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606  # the command of a test
