# Reports what Ansible does, as it does it: one JSON object per line on the file descriptor named by BEDFELLOW_EVENTS.
from __future__ import annotations

import json
import os

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
    name: bedfellow
    type: stdout
    short_description: One JSON event per line
    description: Events for the program that runs Ansible; prints nothing for people.
    options: {}
"""

LIMIT = 8192


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "bedfellow"

    def __init__(self):
        super().__init__()
        self._out = os.fdopen(int(os.environ["BEDFELLOW_EVENTS"]), "w", encoding="utf-8")

    def _emit(self, **event):
        self._out.write(json.dumps(event, default=str) + "\n")
        self._out.flush()

    def _task(self, task):
        # The role's name comes as a prefix of the task's: "slurm : Write slurm.conf".
        self._emit(event="task", task=task.get_name(), path=task.get_path() or "")

    def _result(self, status, result):
        r = result._result  # what no_log hides is already gone from it
        text = {k: str(r[k])[-LIMIT:] for k in ("msg", "stdout", "stderr", "module_stdout", "module_stderr", "censored") if r.get(k)}
        if isinstance(r.get("results"), list):  # a loop: the items that failed say why
            for item in r["results"]:
                if isinstance(item, dict) and item.get("failed"):
                    for k in ("msg", "stdout", "stderr"):
                        if item.get(k):
                            text[k] = str(item[k])[-LIMIT:]
                    text["item"] = str(item.get("item", ""))[:200]
                    break
        self._emit(event="result", status=status, host=result._host.get_name(), task=result._task.get_name(),
                   path=result._task.get_path() or "", rc=r.get("rc"), attempts=r.get("attempts"), retries=r.get("retries"), **text)

    def v2_playbook_on_task_start(self, task, is_conditional):
        self._task(task)

    def v2_playbook_on_handler_task_start(self, task):
        self._task(task)

    def v2_runner_on_ok(self, result):
        self._result("changed" if result._result.get("changed") else "ok", result)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self._result("ignored" if ignore_errors else "failed", result)

    def v2_runner_on_unreachable(self, result):
        self._result("unreachable", result)

    def v2_runner_retry(self, result):
        self._result("retry", result)

    def v2_playbook_on_stats(self, stats):
        hosts = {}
        for host in stats.processed:
            s = stats.summarize(host)
            hosts[host] = {k: s[k] for k in ("ok", "changed", "failures", "unreachable")}
        self._emit(event="stats", hosts=hosts)
