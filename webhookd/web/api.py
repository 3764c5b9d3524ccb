"""What becomes of a request: found in the table, allowed, checked, done in one transaction, and answered once.

request ──▶ router ──▶ who asks ──▶ body ──▶ checks ──▶ [ the same before? ] ──▶ operation ──▶ answer
   └──────────┴───────────┴──────────┴─────────┴──▶ Problem ──▶ a document that every client library can read
"""

import asyncio
import hashlib
import time
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any, Final

import orjson
import structlog
from aiohttp import web
from pydantic import BaseModel, ValidationError

from webhookd.errors import StoreRefused, StoreTaken, StoreUnavailable, WebhookdError
from webhookd.policy.access import Caller
from webhookd.store import requests, tenants
from webhookd.store import tokens as store
from webhookd.store.database import Database
from webhookd.store.requests import Answered
from webhookd.store.tenants import Tenant
from webhookd.web import body, older, openapi
from webhookd.web.operation import TENANT, Answer, Around, Call, Operation
from webhookd.web.problem import Problem, conflict, invalid, not_found, parsed
from webhookd.web.recent import Recent
from webhookd.web.router import Router
from webhookd.web.table import BASE, OPERATIONS
from webhookd.web.tokens import caller_of

LARGE: Final = 64 << 10  # bytes, from which on a body is one of LARGE_AT_ONCE
LARGE_AT_ONCE: Final = 32
TWICE_SECONDS: Final = 10.0  # that a request waits while the same is under way
LOOK_FIRST, LOOK_MOST = 0.05, 0.5  # seconds
SECONDS: Final = 12.0  # for all of it; client libraries give up at 15
LAST_SECONDS: Final = 1.0  # of these, for saying that the same is under way
KEY_MOST: Final = 256  # characters of an idempotency key
SMALL: Final = 1024  # bytes of an answer
JSON: Final = {"content-type": "application/json"}
NOBODY: Final = Caller("", "", "")

log = structlog.get_logger("webhookd.api")


class Which:
    """What a request turns out to be, for who counts it."""

    __slots__ = ("operation", "waits")

    def __init__(self) -> None:
        self.operation = "none"  # as long as it is known to be none of ours
        self.waits = False  # as long as its caller likes


class Api:
    """Answers requests."""

    def __init__(self, database: Database, around: Around) -> None:
        self._database = database
        self._tally = database.tally
        self._router = Router(OPERATIONS)
        self._callers = Recent[Caller]()  # by their tokens
        self._tenants = Recent[Tenant]()  # by their ids and uids
        self._unasked = {each.query: each.query() for each in OPERATIONS if each.query is not None}  # without a query
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self.configure(around)

    def configure(self, around: Around) -> None:
        """Go on with these settings."""
        self._around = around
        self._settings = settings = around.settings
        self._hosts = {host.lower() for host in settings.hosts}
        self._before = settings.base_path + BASE
        self._document = openapi.document(OPERATIONS, self._before)

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """The answer, whatever the request is."""
        began, which = time.monotonic(), Which()
        response = await self._answered(request, which)
        self._tally.requests[which.operation, response.status] += 1
        if not which.waits:
            self._tally.request_seconds.observe(time.monotonic() - began)
        return response

    async def _answered(self, request: web.BaseRequest, which: Which) -> web.Response:
        try:
            async with asyncio.timeout(SECONDS) as within:
                response = await self._answer(request, within, which)
        except Problem as problem:
            response = _told(problem)
        except (StoreUnavailable, TimeoutError):
            response = _told(
                Problem(503, "database_away", "The database does not answer; try again soon.", {"retry-after": "1"})
            )
        except StoreTaken:
            response = _told(conflict("Somebody has just made the same; look at what there is."))
        except StoreRefused as error:
            if error.passes:
                log.warning("api_refused", path=_shown(request), reason=str(error))
                response = _told(Problem(503, "unavailable", "The database could not do it; the log says why."))
            else:
                response = _told(Problem(400, "refused", f"The database does not take it: {error}."))
        except WebhookdError as error:
            log.warning("api_refused", path=_shown(request), reason=str(error))
            response = _told(Problem(503, "unavailable", "The daemon cannot use its database; its log says why."))
        except Exception:
            log.exception("api_broke", path=_shown(request))
            response = _told(Problem(500, "internal", "A bug of webhookd; its log has more."))
        self._allow_origin(request, response)
        return response

    async def _answer(self, request: web.BaseRequest, within: asyncio.Timeout, which: Which) -> web.Response:
        until = time.monotonic() + SECONDS
        self._expect_host(request)
        self._expect_origin(request)
        path = self._path(request)
        if request.method == "OPTIONS":
            return _preflight(self._router.methods(path))
        if path == "/openapi.json" and request.method == "GET":
            return web.Response(body=self._document, headers=JSON)
        operation, parts = self._router.find(request.method, path)
        which.operation, which.waits = operation.id, operation.waits
        caller = NOBODY if operation.right is None else await self._caller(request)
        _expect_right(operation, caller)
        if operation.waits:
            within.reschedule(None)
        query = None
        if operation.query is not None:
            said = request.rel_url.raw_query_string
            query = _checked("query", operation.query, _texts(request)) if said else self._unasked[operation.query]
        call = Call(caller, self._database, parts, until, self._around, partial(self._reached_at, request), query)
        if operation.body is None:
            return _response(request, await self._done(request, operation, call))
        upto = operation.upto if operation.whole else operation.upto + self._around.max_payload
        async with nullcontext() if (request.content_length or LARGE) < LARGE else self._large:
            call.raw = await body.read(request, upto)
            if operation.whole:
                await body.expect_shallow(call.raw)
                call.body = parsed(operation.body, call.raw or b"{}")
            return _response(request, await self._done(request, operation, call))

    async def _done(self, request: web.BaseRequest, operation: Operation, call: Call) -> Answer:
        if operation.writes:
            try:
                answer = await self._written(request, operation, call)
            finally:
                call.connection = self._database
                if operation.is_of_tenants:
                    self._tenants.clear()
            return answer if operation.afterwards is None else await operation.afterwards(call, answer)
        named = call.path[TENANT] if operation.of_tenant and not operation.is_of_tenants else None
        kept = self._tenants.get(named) if named is not None else None
        if kept is not None and call.caller.tenant in (None, kept.id):
            call.tenant, named = kept, None
        asked = self._tenants.cleared
        answer = await _done(operation, call)
        if named is not None and call.tenant is not None:
            self._tenants.keep(named, call.tenant, asked)
        return answer

    def _expect_host(self, request: web.BaseRequest) -> None:
        host = request.headers.get("host", "").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self._hosts and name not in self._hosts:
            raise Problem(421, "other_host", "This is not the host that the API is reached by.")

    def _expect_origin(self, request: web.BaseRequest) -> None:
        """Pages of others write nothing: no browser sends a token by itself, but nobody should have to rely on that."""
        origin = request.headers.get("origin")
        if origin is None or request.method in ("GET", "HEAD", "OPTIONS") or origin in self._settings.cors_origins:
            return
        if origin.partition("://")[2] != request.headers.get("host"):
            raise Problem(
                403, "other_origin", "Pages of this origin may not use the API; [api] cors_origins says which."
            )

    def _reached_at(self, request: web.BaseRequest) -> str:
        is_https = request.headers.get("x-forwarded-proto", request.scheme) == "https"
        return (
            f"{'https' if is_https else 'http'}://{request.headers.get('host', 'localhost')}{self._settings.base_path}"
        )

    def _path(self, request: web.BaseRequest) -> str:
        before = self._before
        path = request.rel_url.raw_path
        if path != before and not path.startswith(before + "/"):
            raise Problem(404, "not_found", f"There is nothing at this path; the API begins at {before}/.")
        return path.removeprefix(before)

    async def _caller(self, request: web.BaseRequest) -> Caller:
        """Who asks. Problem 401 for whoever does not say."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise _unauthorized("Say who you are: `Authorization: Bearer TOKEN`; `webhookd token new` makes one.")
        if (caller := self._callers.get(token)) is not None:
            return caller
        hash_ = store.hash_of(token)
        if role := self._settings.tokens.get(hash_):
            name = f"file:{hash_.hex()[:8]}"  # which tells it from the others of the file
            caller = Caller(name, f"{role} of tokens_file ({name})", role)
        elif (known := await store.known(self._database, token)) is not None:
            caller = caller_of(known)
        else:
            raise _unauthorized("This token is none that counts: it is wrong, was revoked, or has expired.")
        self._callers.keep(token, caller)
        return caller

    async def _written(self, request: web.BaseRequest, operation: Operation, call: Call) -> Answer:
        """Do it in one transaction; what was done for the same request before is not done again."""
        key = _key(request, call)
        if operation.at_once is not None:
            with suppress(Problem):  # which is told below, if it was not answered otherwise before
                if (answer := await operation.at_once(call, key)) is not None:
                    return answer
        # What is left of the time for all of it, of which the body may have taken some.
        until, pause = min(time.monotonic() + TWICE_SECONDS, call.until - LAST_SECONDS), LOOK_FIRST
        while True:
            async with self._database.transaction() as connection:
                if await requests.begin(connection, call.caller.name, key):
                    call.connection = connection
                    return await _once(operation, call, key)
            if time.monotonic() > until:
                raise conflict("The same request is under way; ask again with the same idempotency-key.", "under_way")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LOOK_MOST)

    def _allow_origin(self, request: web.BaseRequest, response: web.Response) -> None:
        origin = request.headers.get("origin")
        if origin is not None and origin in self._settings.cors_origins:
            response.headers["access-control-allow-origin"] = origin
            response.headers["vary"] = "origin"


async def _once(operation: Operation, call: Call, key: bytes | None) -> Answer:
    """Answer as before where it was answered before."""
    if key is None:
        return await _done(operation, call)
    digest = call.digest
    before = await requests.answered(call.connection, key)
    if before is None:
        answer = await _done(operation, call)
        await requests.keep(call.connection, key, Answered(digest, answer.status, answer.made))
        return answer
    if before.body != digest:
        raise conflict("This idempotency-key was used for another request; give each its own.", "key_reused")
    if operation.again is None:
        return Answer(before.status)
    await _find_tenant(operation, call)
    return await operation.again(call, before.made, before.status)


async def _done(operation: Operation, call: Call) -> Answer:
    await _find_tenant(operation, call)
    return await operation.handler(call)


async def _find_tenant(operation: Operation, call: Call) -> None:
    """Know whose things it is about. Problem 404 where there is no such tenant, or it is not the caller's."""
    if not operation.of_tenant:
        return
    if call.tenant is None:
        call.tenant = await tenants.find(call.connection, call.path[TENANT])
    if call.caller.tenant is not None and (call.tenant is None or call.tenant.id != call.caller.tenant):
        raise not_found("application")
    if call.tenant is None and not operation.may_be_new:
        raise not_found("application")


def _expect_right(operation: Operation, caller: Caller) -> None:
    if operation.right is None:
        return
    if operation.right not in caller.rights:
        raise Problem(403, "forbidden", f"This token may not {operation.summary.lower()}: its role is {caller.role}.")
    if caller.tenant is not None and not operation.of_tenant and not operation.for_all:
        raise Problem(403, "forbidden", "This token is for one application, and this is about more than that.")


def _key(request: web.BaseRequest, call: Call) -> bytes | None:
    """What this request has in common with another that is the same, if it says so."""
    key = request.headers.get("idempotency-key")
    if key is None or request.method != "POST":
        return None
    if not key or len(key) > KEY_MOST:
        raise Problem(400, "bad_key", f"An idempotency-key has 1 to {KEY_MOST} characters.")
    whole = "\0".join((call.caller.token, key, request.method, request.rel_url.raw_path))
    return hashlib.sha256(whole.encode("utf-8", "surrogateescape")).digest()


def _shown(request: web.BaseRequest) -> str:
    """The path, for a log: what is no text in it as escapes."""
    return request.path.encode("ascii", "backslashreplace").decode()


def _texts(request: web.BaseRequest) -> dict[str, str | list[str]]:
    """The query; what is there several times is a list."""
    query = request.rel_url.query
    return {name: values[0] if len(values := query.getall(name)) == 1 else values for name in set(query)}


def _checked(where: str, model: type[BaseModel], value: object) -> Any:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid(where, error) from None


def _response(request: web.BaseRequest, answer: Answer) -> web.Response:
    if answer.value is None:
        return web.Response(status=answer.status)
    value = answer.value.model_dump(by_alias=True, warnings=False)
    if older.is_strict(request.headers.get("user-agent", "")):
        value = older.known(value)
    content = orjson.dumps(value, option=orjson.OPT_UTC_Z)
    if len(content) < SMALL:  # it lies in a buffer of 4 KiB, and a connection keeps the last that it has sent
        content = bytes(memoryview(content))
    return web.Response(status=answer.status, body=content, headers=JSON)


def _told(problem: Problem) -> web.Response:
    response = web.Response(status=problem.status, body=problem.body, headers=problem.headers)
    if problem.headers.get("connection") == "close":
        response.force_close()
    return response


def _preflight(methods: list[str]) -> web.Response:
    headers = {
        "allow": ", ".join([*methods, "OPTIONS"]),
        "access-control-allow-methods": ", ".join(methods),
        "access-control-allow-headers": "authorization, content-type, idempotency-key, svix-req-id, svix-retry-count",
        "access-control-max-age": "600",
    }
    return web.Response(status=204, headers=headers)


def _unauthorized(detail: str) -> Problem:
    return Problem(401, "authentication_failed", detail, {"www-authenticate": "Bearer"})
