"""The few addresses of the Hugging Face hub that `huggingface_hub` asks for, on a `Server`."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Repository:
    """Files of one commit, which is `main` and every revision in `revisions`."""

    files: dict[str, bytes]
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main",)
    gated: bool = False
    token: str = ""  # that the client must send


@dataclass
class Hub:
    """Answers for repositories; `asked` are the files that were fetched."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    damaged: tuple[str, ...] = ()  # files whose content is not what the ETag says

    def answers(self, handler, body):
        """Whether a request is of the hub; then it was answered."""
        path = handler.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._about(handler, found[1], found[2] or "main")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(handler, *found.groups(), body=body)
        else:
            return False
        return True

    def _repository(self, handler, name, revision):
        """The repository, if it may be shown; else the answer has been sent."""
        repository = self.repositories.get(name)
        sent = handler.headers.get("Authorization", "")
        if repository is None or (repository.token and sent != f"Bearer {repository.token}"):
            gated = repository is not None and repository.gated
            return _refuse(handler, 403 if gated else 401, "GatedRepo" if gated else "RepoNotFound")
        if revision not in (*repository.revisions, repository.commit):
            return _refuse(handler, 404, "RevisionNotFound")
        return repository

    def _about(self, handler, name, revision):
        if (repository := self._repository(handler, name, revision)) is None:
            return
        siblings = [{"rfilename": file} for file in repository.files]
        about = {"id": name, "modelId": name, "sha": repository.commit, "siblings": siblings}
        _send(handler, json.dumps(about).encode(), {"Content-Type": "application/json"}, True)

    def _file(self, handler, name, revision, file, *, body):
        if (repository := self._repository(handler, name, revision)) is None:
            return
        if file not in repository.files:
            _refuse(handler, 404, "EntryNotFound")
            return
        data = repository.files[file]
        if body:
            self.asked.append(file)
        large = file.endswith((".safetensors", ".bin"))
        etag = (hashlib.sha256 if large else hashlib.sha1)(data).hexdigest()
        data = bytes(reversed(data)) if file in self.damaged else data
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": repository.commit}
        _send(handler, data, headers, body)


def _send(handler, data, headers, body):
    handler.send_response(200)
    for name, value in {**headers, "Content-Length": str(len(data))}.items():
        handler.send_header(name, value)
    handler.end_headers()
    if body:
        handler.wfile.write(data)


def _refuse(handler, status, code):
    handler.send_response(status)
    handler.send_header("X-Error-Code", code)
    handler.send_header("X-Error-Message", "refused")
    handler.send_header("Content-Length", "0")
    handler.end_headers()
