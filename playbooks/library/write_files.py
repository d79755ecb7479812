#!/usr/bin/python
"""Writes a role's files in one run, where a copy of each would take five commands on the node, each slow where CPUs are emulated."""
from __future__ import annotations

DOCUMENTATION = """
module: write_files
short_description: Write files whose content is known
description:
  - Writes each file beside its place, with its owner and mode, and moves it there; one that is right is left alone.
  - Nobody but root can read a file before it has its owner and mode.
options:
  files:
    description: The files.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Where it is; the directory must exist.
        type: path
        required: true
      content:
        description:
          - What is in it, which nothing that Ansible says or logs will show.
          - Text that looks like JSON comes as what it means, and is written as JSON again.
        type: raw
        required: true
      owner:
        description: Name of its owner, and of the group.
        type: str
        default: root
      mode:
        description: Its permissions in octal.
        type: str
        default: "0644"
      mount:
        description: Whether it may be a mount, which can only be written in place.
        type: bool
        default: false
author: Bedfellow
"""

EXAMPLES = """
- name: Write the files
  write_files:
    files:
      - {path: /etc/example.conf, content: "{{ lookup('ansible.builtin.template', 'example.conf.j2') }}"}
"""

RETURN = """
written:
  description: Paths of the files that were not as they are to be.
  type: list
  elements: str
  returned: always
"""

import errno
import json
import os
import pwd
import stat

from ansible.module_utils.basic import AnsibleModule


def right(path, content, ids, mode):
    try:
        info = os.lstat(path)
        if not stat.S_ISREG(info.st_mode) or (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) != (*ids, mode):
            return False
        with open(path, "rb") as f:
            return f.read() == content
    except FileNotFoundError:
        return False


def write(path, content, ids, mode, mount):
    new = path + ".bed-new"
    if os.path.lexists(new):  # of a run that was cut short
        os.remove(new)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
        f.write(content)
        os.fchown(f.fileno(), *ids)
        os.fchmod(f.fileno(), mode)
    try:
        os.rename(new, path)
    except OSError as e:
        os.remove(new)
        if e.errno != errno.EBUSY or not mount:
            raise
        with open(path, "wb") as f:
            f.write(content)
            os.fchown(f.fileno(), *ids)
            os.fchmod(f.fileno(), mode)


def main():
    suboptions = {
        "path": {"type": "path", "required": True},
        "content": {"type": "raw", "required": True, "no_log": True},
        "owner": {"type": "str", "default": "root"},
        "mode": {"type": "str", "default": "0644"},
        "mount": {"type": "bool", "default": False},
    }
    module = AnsibleModule(
        argument_spec={"files": {"type": "list", "elements": "dict", "required": True, "options": suboptions}},
        supports_check_mode=True,
    )
    written = []
    for f in module.params["files"]:
        path, content = f["path"], f["content"]
        if not isinstance(content, str):
            content = json.dumps(content, sort_keys=True) + "\n"
        content = content.encode()
        try:
            user, mode = pwd.getpwnam(f["owner"]), int(f["mode"], 8)
            ids = (user.pw_uid, user.pw_gid)
            if right(path, content, ids, mode):
                continue
            if not module.check_mode:
                write(path, content, ids, mode, f["mount"])
        except (OSError, KeyError, ValueError) as e:
            module.fail_json(msg=f"writing {path} for {f['owner']}, mode {f['mode']}: {e}", written=written)
        written.append(path)
    module.exit_json(changed=bool(written), written=written)


if __name__ == "__main__":
    main()
