"""Who may ask: tokens, certificates, and where a service may listen."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

TOKEN_VARIABLE = "RWKERNELS_TOKEN"
SHORTEST_TOKEN = 16
_LARGEST_FILE = 1 << 20


class Tokens:
    """The tokens that a service takes; several, so that one can be replaced while clients still use the other."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._digests = [_digest(token.encode()) for token in tokens]

    def __len__(self) -> int:
        return len(self._digests)

    def allow(self, authorization: str | bytes | None) -> bool:
        """Whether the header `authorization: Bearer TOKEN` names one of the tokens.

        Takes as long whichever token it is and wherever two differ: digests of one length, every one compared.
        """
        if isinstance(authorization, str):
            authorization = authorization.encode("utf-8", "surrogateescape")
        scheme, _, token = (authorization or b"").partition(b" ")
        found = _digest(token)
        matches = [hmac.compare_digest(found, digest) for digest in self._digests]
        return scheme.lower() == b"bearer" and any(matches)


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def read_tokens(path: str | os.PathLike[str] | None, variable: str = TOKEN_VARIABLE) -> list[str]:
    """The tokens in a file, one a line, or else the one in the environment variable; none where there is neither.

    Raises:
        ValueError: The file cannot be read or holds no token, or a token is short, or has blanks or other characters
            that no HTTP header takes.
    """
    if path is not None:
        found = [line.strip() for line in read_file("token_file", path).decode("ascii", "replace").splitlines()]
        found = [line for line in found if line]
        if not found:
            raise ValueError("token_file: expected a token in a line, got an empty file")
    else:
        found = [os.environ[variable].strip()] if os.environ.get(variable, "").strip() else []
    return [checked_token(token, "token_file" if path is not None else variable) for token in found]


def checked_token(token: str, name: str) -> str:
    """Refuses a token that is easily guessed or that a header cannot carry. The message does not show it."""
    if not isinstance(token, str) or len(token) < SHORTEST_TOKEN:
        raise ValueError(f"{name}: expected a token of at least {SHORTEST_TOKEN} characters")
    if not all("!" <= character <= "~" for character in token):
        raise ValueError(f"{name}: expected a token of visible ASCII characters")
    return token


def readable_by_others(path: str | os.PathLike[str]) -> bool:
    """Whether users other than the owner may read a file of secrets."""
    return bool(os.stat(path).st_mode & (stat.S_IRGRP | stat.S_IROTH))


def read_file(name: str, path: str | os.PathLike[str]) -> bytes:
    """A small file of secrets or certificates."""
    try:
        with open(path, "rb") as file:
            found = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ValueError(f"{name}: cannot read {os.fspath(path)!r} ({error.strerror})") from None
    if len(found) > _LARGEST_FILE:
        raise ValueError(f"{name}: expected a file of at most {_LARGEST_FILE} bytes, got a larger one")
    return found


@dataclass(frozen=True, repr=False)
class Certificates:
    """PEM files of a service; what prints it shows none of them.

    Attributes:
        certificate: Chain of certificates of the service.
        key: Its private key.
        client_roots: Certificates that clients' ones have to be signed by; without it, clients need none.
    """

    certificate: bytes
    key: bytes
    client_roots: bytes | None = None

    @classmethod
    def read(cls, certificate: str | Path, key: str | Path, client_roots: str | Path | None = None) -> Certificates:
        """Reads the files, and refuses what is not PEM."""
        roots = None if client_roots is None else _pem("tls_client_ca", client_roots, b"CERTIFICATE")
        return cls(_pem("tls_cert", certificate, b"CERTIFICATE"), _pem("tls_key", key, b"PRIVATE KEY"), roots)


def _pem(name: str, path: str | Path, kind: bytes) -> bytes:
    found = read_file(name, path)
    if b"-----BEGIN " not in found or kind not in found:
        raise ValueError(f"{name}: expected a PEM file with a {kind.decode().lower()}, got {os.fspath(path)!r}")
    return found


def address(host: str) -> str:
    """The host as gRPC takes it in an address: IPv6 in brackets."""
    bare = host.strip("[]")
    return f"[{bare}]" if ":" in bare else bare


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`. Names other than localhost are taken as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def refuse_exposed(host: str, *, encrypted: bool, authenticated: bool, forced: Sequence[str] = ()) -> None:
    """Refuses to listen where others could read or ask, unless every gap is forced.

    Args:
        host: Where to listen.
        encrypted: Whether there is TLS.
        authenticated: Whether clients need a token or a certificate.
        forced: Of `"plaintext"` and `"anonymous"`, what is allowed in spite of it.

    Raises:
        ValueError: It is not safe.
    """
    if is_loopback(host):
        return
    if not encrypted and "plaintext" not in forced:
        raise ValueError(
            f"host: expected a loopback address without TLS, got {host!r} (give tls_cert and tls_key, or "
            "--insecure-plaintext)"
        )
    if not authenticated and "anonymous" not in forced:
        raise ValueError(
            f"host: expected a loopback address without a token, got {host!r} (give token_file or {TOKEN_VARIABLE}, or "
            "--insecure-anonymous)"
        )
