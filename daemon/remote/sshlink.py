"""One ssh connection and the SFTP sessions over it, in a thread of their own.

asyncssh speaks asyncio; whoever calls is a plain thread. The connection is made at the first call, and again at the call after it was
lost; calls that are under way then fail, for whoever tries again. Sessions are opened as calls come, up to a bound: the server works
through the requests of one session one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import CancelledError as FutureCancelledError
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncssh

from millpond.daemon.errors import CredentialsError, RemoteError
from millpond.daemon.remote.backend import FINAL, SILENT, why
from millpond.daemon.remote.sshsettings import SSHSettings

T = TypeVar("T")
# Calls in one session before another one is opened.
_SHARED = 2
# Names that are no UTF-8 are kept as they are.
_NAMES: dict[str, Any] = {"path_errors": "surrogateescape"}
# What ends a connection, and so all calls on it.
LOST = (asyncssh.DisconnectError, asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection, ConnectionError)


class SSHLink:
    """To one server, for any number of threads. `run` raises RemoteError, CredentialsError, and what the call itself raises."""

    def __init__(self, name: str, settings: SSHSettings) -> None:
        self._name = name
        self._settings = settings
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        # Below: for the loop's thread alone.
        self._connecting: asyncio.Task[_Sessions] | None = None
        self._worked = False

    def submit(self, call: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Run a coroutine in the loop; the result is for `wait`."""
        with self._lock:  # what is begun before the end is ended with the rest
            loop = self._started()
            return asyncio.run_coroutine_threadsafe(call(), loop)

    def wait(self, future: Future[T]) -> T:
        """What a coroutine returned or raised."""
        try:
            return future.result()
        except FutureCancelledError:
            raise self._unused() from None

    def run(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine in the loop, and wait for it."""
        return self.wait(self.submit(call))

    @contextlib.asynccontextmanager
    async def session(self, own: Session | None = None) -> AsyncIterator[Session]:
        """A session for one step, or the one of the step before. When the server says nothing for too long it ends, as the
        connection does."""
        sessions = await self._connected() if own is None else own.sessions
        try:
            async with asyncio.timeout(self._settings.answer_s), sessions.use(own) as used:
                yield used
        except LOST as error:
            self._drop(sessions)
            raise RemoteError(f"the connection to remote '{self._name}' ({self._settings.url}) was lost") from error
        except (asyncssh.ChannelOpenError, asyncssh.SFTPError) as error:
            # Or it speaks before SFTP does: what a shell's start-up files print, a shell that lets nobody in.
            self._drop(sessions)
            raise self._unreachable(f"the server opens no SFTP session ({error.reason})", final=True) from error
        except TimeoutError as error:
            self._drop(sessions)
            raise RemoteError(
                f"remote '{self._name}' ({self._settings.url}) did not answer in {self._settings.answer_s:g} s",
                details=SILENT,
            ) from error

    def close(self) -> None:
        """End what is under way, then the thread. In a process that was forked since there is none."""
        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._thread
        if loop is None or thread is None or not thread.is_alive():
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._closed:
            raise self._unused()
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._serve, args=(self._loop,), name="ssh", daemon=True)
            self._thread.start()
        return self._loop

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.run_forever()
            if self._connecting is not None and self._connecting.done() and self._connecting.exception() is None:
                self._drop(self._connecting.result())
            while tasks := asyncio.all_tasks(loop):  # one that ends may begin another that tidies up
                for task in tasks:
                    task.cancel()
                loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.run_until_complete(asyncio.sleep(0))  # the socket is closed by the loop's next round
        finally:
            loop.close()

    def _unused(self) -> RemoteError:
        return RemoteError(f"remote '{self._name}' is not used any more", details=FINAL)

    async def _connected(self) -> _Sessions:
        """Of calls that come at once one connects, and the others wait for it."""
        if self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
        connecting = self._connecting
        try:
            return await asyncio.shield(connecting)
        finally:
            failed = connecting.done() and not connecting.cancelled() and connecting.exception() is not None
            if failed and self._connecting is connecting:
                self._connecting = None

    def _drop(self, sessions: _Sessions) -> None:
        """Have the next call connect anew, unless one has."""
        connecting = self._connecting
        if connecting is not None and connecting.done() and connecting.result() is sessions:
            self._connecting = None
        sessions.abort()

    async def _connect(self) -> _Sessions:
        client = _Client()
        settings = self._settings
        try:
            options = settings.options()
            known_hosts = settings.known_hosts(options)
            connection, _ = await asyncssh.create_connection(
                lambda: client,
                settings.host,
                options=options,
                known_hosts=known_hosts,
                sock=await _reach(options, settings),
            )
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
            raise self._refused(
                f"its key cannot be used: {error}", "see keyfile and passphrase, or use ssh-add"
            ) from error
        except asyncssh.HostKeyNotVerifiable as error:
            raise self._unverified(client, known_hosts, str(error.reason)) from error
        except asyncssh.PermissionDenied as error:
            raise self._refused(
                f"the server does not let {options.username} in",
                "see user, keyfile and ssh-agent (ssh-add -l)",
            ) from error
        except (asyncssh.Error, OSError, ValueError, KeyError) as error:  # KeyError: a uid without a name
            raise self._unreachable(_reason(error)) from error
        self._worked = True
        return _Sessions(connection, settings.sessions)

    def _unverified(self, client: _Client, known: asyncssh.SSHKnownHosts, reason: str) -> RemoteError:
        """The server did not prove that it is the right one: nothing was sent to it."""
        if client.key is None:  # a certificate that does not fit, or a key that was revoked
            return self._unreachable(reason, final=True)
        settings = self._settings
        host, address, port, key = client.key
        words = ["ssh", *(["-p", str(settings.port)] if settings.port else [])]
        command = " ".join([*words, f"{settings.user}@{settings.host}" if settings.user else settings.host])
        told = f"{key.get_fingerprint()} ({key.get_algorithm()})"
        if any(known.match(host, address, None if port == 22 else port)[:2]):
            entry = host if port == 22 else f"[{host}]:{port}"
            problem = f"its host key is another one than known_hosts has: {told}"
            hint = f"ask its admin whether it was changed; if so: ssh-keygen -R '{entry}', then `{command}`"
        else:
            problem = f"its host key is not known here: {told}"
            hint = f"connect once with `{command}` and compare the key, then try again"
        return RemoteError(
            f"remote '{self._name}' ({self._settings.url}): {problem}",
            path=self._settings.url,
            hint=hint,
            details=FINAL,
        )

    def _refused(self, reason: str, hint: str) -> CredentialsError:
        url = self._settings.url
        return CredentialsError(f"cannot log in to remote '{self._name}' ({url}): {reason}", path=url, hint=hint)

    def _unreachable(self, reason: str, *, final: bool = False) -> RemoteError:
        """What never worked is not tried again: the url is wrong, or the network is away."""
        url = self._settings.url
        return RemoteError(
            f"remote '{self._name}' cannot be reached ({url}): {reason}",
            path=url,
            hint="see its url and the network, then try again",
            details=FINAL if final or not self._worked else None,
        )


class _Client(asyncssh.SSHClient):
    """Notes the key of a server that is not known; it is never taken."""

    def __init__(self) -> None:
        self.key: tuple[str, str, int, asyncssh.SSHKey] | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.key = host, addr, port, key
        return False


@dataclass(eq=False, slots=True)
class Session:
    """One SFTP session, and how many calls use it."""

    client: asyncssh.SFTPClient
    sessions: _Sessions
    calls: int = 0


class _Sessions:
    """The SFTP sessions of one connection."""

    def __init__(self, connection: asyncssh.SSHClientConnection, most: int) -> None:
        self._connection = connection
        self._most = most
        self._opening = 0
        self._opened: list[Session] = []
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def use(self, own: Session | None) -> AsyncIterator[Session]:
        """This one, or the one that has least to do."""
        session = await self._least() if own is None else own
        session.calls += 1
        try:
            yield session
        finally:
            session.calls -= 1

    async def _least(self) -> Session:
        if len(self._opened) + self._opening < self._most and all(each.calls >= _SHARED for each in self._opened):
            self._opening += 1
            try:
                self._opened.append(Session(await self._connection.start_sftp_client(**_NAMES), self))
            except asyncssh.ChannelOpenError:
                self._most = len(self._opened) + self._opening - 1  # the server's own bound
                if not self._most:
                    raise
            finally:
                self._opening -= 1
                async with self._changed:
                    self._changed.notify_all()
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._opened) or not self._opening)
        if not self._opened:  # the one that opened it is told why there is none
            raise asyncssh.SFTPConnectionLost("no session was opened")
        return min(self._opened, key=lambda each: each.calls)

    def abort(self) -> None:
        """Nothing is waited for."""
        self._connection.abort()


async def _reach(options: asyncssh.SSHClientConnectionOptions, settings: SSHSettings) -> socket.socket | None:
    """A TCP connection where nothing stands between: its time is short, while a login may take long."""
    if options.tunnel or options.proxy_command or options.local_addr:
        return None

    def connect() -> socket.socket:
        made = socket.create_connection((options.host, options.port), settings.connect_s)
        made.setblocking(False)
        return made

    return await asyncio.get_running_loop().run_in_executor(None, connect)


def _reason(error: Exception) -> str:
    if isinstance(error, asyncssh.Error):
        return str(error.reason)
    return str(error) if type(error) in (ValueError, asyncssh.ConfigParseError) else why(error)
