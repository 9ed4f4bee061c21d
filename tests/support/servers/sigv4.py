"""The door of the S3 server: who may pass, judged by AWS's Signature Version 4."""

import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import reduce
from hashlib import sha256
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING, Self
from urllib.parse import quote, unquote

from werkzeug.wrappers import Request, Response
from werkzeug.wsgi import get_input_stream

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ALGORITHM = "AWS4-HMAC-SHA256"
TIME = "%Y%m%dT%H%M%SZ"
SKEW = timedelta(minutes=15)
LONGEST = timedelta(days=7)
IN_MEMORY = 1 << 20

STATUS = {
    "AccessDenied": 403,
    "AuthorizationHeaderMalformed": 400,
    "AuthorizationQueryParametersError": 400,
    "InvalidAccessKeyId": 403,
    "InvalidRequest": 400,
    "RequestTimeTooSkewed": 403,
    "SignatureDoesNotMatch": 403,
    "XAmzContentSHA256Mismatch": 400,
}


class RefusedError(Exception):
    """The request may not pass, for a reason that S3 has a code for."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code

    def response(self) -> Response:
        body = f"<Error><Code>{self.code}</Code><Message>{self}</Message></Error>"
        return Response(body, STATUS[self.code], content_type="application/xml")


@dataclass(frozen=True)
class Signature:
    """What a request says of its own signature."""

    access_key: str
    scope: str
    time: str
    signed: tuple[str, ...]
    payload: str
    value: str
    lifetime: timedelta | None = None  # of a link; a signed header is good for its own moment only

    @classmethod
    def of(cls, request: Request) -> Self:
        """Read the signature from the query or from the header."""
        if "X-Amz-Signature" in request.args:
            return cls.from_query(request)
        if "Authorization" in request.headers:
            return cls.from_header(request)
        if "AWSAccessKeyId" in request.args:
            raise RefusedError("InvalidRequest", f"Please use {ALGORITHM}.")
        raise RefusedError("AccessDenied", "Access Denied")

    @classmethod
    def from_header(cls, request: Request) -> Self:
        algorithm, _, rest = request.headers["Authorization"].partition(" ")
        if algorithm != ALGORITHM:
            raise RefusedError("InvalidRequest", f"Please use {ALGORITHM}.")
        fields = dict(re.findall(r"(\w+)=([^,\s]+)", rest))
        fields["Date"] = request.headers.get("x-amz-date", "")
        payload = request.headers.get("x-amz-content-sha256", "")
        return cls._build(fields, payload, None, "AuthorizationHeaderMalformed")

    @classmethod
    def from_query(cls, request: Request) -> Self:
        fields = {name.removeprefix("X-Amz-"): value for name, value in request.args.items()}
        payload = request.headers.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
        code = "AuthorizationQueryParametersError"
        if fields.get("Algorithm") != ALGORITHM:
            raise RefusedError(code, f"X-Amz-Algorithm only supports {ALGORITHM}")
        return cls._build(fields, payload, _lifetime(fields.get("Expires", "")), code)

    @classmethod
    def _build(
        cls, fields: Mapping[str, str], payload: str, lifetime: timedelta | None, code: str
    ) -> Self:
        try:
            access_key, _, scope = fields["Credential"].partition("/")
            signed = tuple(fields["SignedHeaders"].split(";"))
            signature = cls(
                access_key, scope, fields["Date"], signed, payload, fields["Signature"], lifetime
            )
        except KeyError as missing:
            raise RefusedError(code, f"{missing} is missing") from None
        if not re.fullmatch(rf"{signature.time[:8]}/[^/]+/s3/aws4_request", scope):
            raise RefusedError(code, "The credential's scope does not fit the request")
        return signature

    def check_time(self, now: datetime) -> None:
        """Refuse what is too old or comes from the future."""
        signed_at = _parse_time(self.time)
        if self.lifetime is None:
            if abs(now - signed_at) > SKEW:
                raise RefusedError(
                    "RequestTimeTooSkewed", "The request's time is too far from ours"
                )
        elif now >= signed_at + self.lifetime:
            raise RefusedError("AccessDenied", "Request has expired")
        elif signed_at > now + SKEW:
            raise RefusedError("AccessDenied", "Request is not valid yet")

    def check_headers(self, request: Request) -> None:
        """Refuse a request to which anybody could have added what S3 obeys."""
        signed = {_same(name) for name in self.signed}
        present = {_same(name) for name, _ in request.headers}
        needed = {name for name in present if name.startswith("x-amz-")} | {"host"}
        if self.lifetime is not None:
            needed -= {"x-amz-content-sha256"}
        if needed - signed:
            raise RefusedError("AccessDenied", f"Headers not signed: {sorted(needed - signed)}")

    def check_value(self, request: Request, secret_key: str) -> None:
        """Refuse what was not signed with the secret, or was changed since."""
        canonical = self._canonical(request)
        text = "\n".join((ALGORITHM, self.time, self.scope, _hash(canonical.encode())))
        expected = _hmac(self._key(secret_key), text).hex()
        if not hmac.compare_digest(expected.encode(), self.value.encode()):
            raise RefusedError("SignatureDoesNotMatch", "The signature does not match the request")

    def check_payload(self, digest: str) -> None:
        """Refuse a body other than the one that was signed."""
        if re.fullmatch("[0-9a-f]{64}", self.payload) and self.payload != digest:
            raise RefusedError(
                "XAmzContentSHA256Mismatch", "The body is not the one that was signed"
            )

    def _canonical(self, request: Request) -> str:
        path, _, query = _raw_uri(request).partition("?")
        headers = [f"{name}:{_header(request, name)}\n" for name in self.signed]
        return "\n".join(
            (
                request.method,
                quote(unquote(path), safe="/-_.~"),
                _canonical_query(query),
                "".join(headers),
                ";".join(self.signed),
                self.payload,
            )
        )

    def _key(self, secret_key: str) -> bytes:
        return reduce(_hmac, self.scope.split("/"), f"AWS4{secret_key}".encode())


class Door:
    """A WSGI application that asks for a valid signature before another one is reached."""

    def __init__(self, app: "WSGIApplication", access_key: str, secret_key: str) -> None:
        self._app = app
        self._access_key = access_key
        self._secret_key = secret_key

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        # The body is always read to its end: a client that is refused half-way through its upload
        # would see a broken connection instead of the reason.
        with SpooledTemporaryFile(IN_MEMORY) as body:
            digest = _spool(environ, body)
            try:
                self.check(Request(environ), digest)
            except RefusedError as refused:
                return _answer(refused.response(), environ, start_response)
            environ |= {"wsgi.input": body, "CONTENT_LENGTH": str(body.tell())}
            environ.pop("HTTP_TRANSFER_ENCODING", None)
            body.seek(0)
            return _answer(self._app, environ, start_response)

    def check(self, request: Request, digest: str) -> None:
        """Return if the request may pass, else raise `RefusedError`."""
        signature = Signature.of(request)
        if signature.access_key != self._access_key:
            raise RefusedError("InvalidAccessKeyId", "The access key id is not on record")
        signature.check_time(datetime.now(UTC))
        signature.check_headers(request)
        signature.check_value(request, self._secret_key)
        signature.check_payload(digest)


def _spool(environ: "WSGIEnvironment", body: SpooledTemporaryFile[bytes]) -> str:
    digest = sha256()
    stream = get_input_stream(environ)
    while chunk := stream.read(IN_MEMORY):
        digest.update(chunk)
        body.write(chunk)
    return digest.hexdigest()


def _answer(
    app: "WSGIApplication", environ: "WSGIEnvironment", start_response: "StartResponse"
) -> Iterable[bytes]:
    # A copy, because the body that was spooled is closed behind us; and a clean one, because moto
    # answers HEAD with a body, which clients take for the beginning of another answer.
    return Response.from_app(app, environ, buffered=True)(environ, start_response)


def _lifetime(seconds: str) -> timedelta:
    if seconds.isdecimal() and timedelta(0) < timedelta(seconds=int(seconds)) <= LONGEST:
        return timedelta(seconds=int(seconds))
    raise RefusedError(
        "AuthorizationQueryParametersError", "X-Amz-Expires takes 1 to 604800 seconds"
    )


def _parse_time(text: str) -> datetime:
    try:
        return datetime.strptime(text, TIME).replace(tzinfo=UTC)
    except ValueError:
        raise RefusedError("AccessDenied", "A valid x-amz-date is required") from None


def _canonical_query(query: str) -> str:
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    encoded = [(_encode(name), _encode(value)) for name, _, value in pairs]
    return "&".join(f"{n}={v}" for n, v in sorted(encoded) if n != "X-Amz-Signature")


def _encode(text: str) -> str:
    return quote(unquote(text), safe="-_.~")


def _header(request: Request, name: str) -> str:
    return " ".join(request.headers.get(name, "").split())


def _same(name: str) -> str:
    # WSGI does not tell an underscore from a dash, and names of metadata may hold both.
    return name.lower().replace("_", "-")


def _raw_uri(request: Request) -> str:
    uri: str = request.environ["RAW_URI"]  # as it was sent; PATH_INFO has lost its escapes
    return uri.encode("latin-1").decode()


def _hash(data: bytes) -> str:
    return sha256(data).hexdigest()


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
