"""A server process that has imported the libraries, and a replacement of ``python`` that forks from this process.

Importing PyTorch and the libraries takes 13 seconds of CPU time, more than most commands that the tests start. All
workers of pytest-xdist share one server: the first that needs it starts it, and it ends with the last of them. The
command replaces an interpreter wherever one can be configured (``$PYTHON``, ``$PYTHON_EXEC`` of ``torchrun``). It
passes its folder, environment, files and signals to the forked process, and exits with the same status.

``python -IS fork_server.py NAME [-u] FILE | -m MODULE | -c CODE`` is the command, and ``python fork_server.py NAME
--serve MODULE...`` the server, which listens on an abstract socket of this name.
"""

import json
import os
import socket
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
FORWARDED = ('SIGHUP', 'SIGINT', 'SIGTERM', 'SIGUSR1', 'SIGUSR2')
LEASE = b'lease'
#: Seconds after which a server without leases ends, because the process that started it was killed.
UNUSED = 120
#: Suffix of the name of the server that has imported only torch and MMEngine.
CORE = '-core'


def connect(name):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(f'\0{name}')
    return connection


# The command. It imports only the modules above, because it is started hundreds of times.


def run(name, arguments):
    """Let the server run Python with these arguments, and exit as that process does."""
    import signal

    try:
        connection = connect(name)
    except ConnectionRefusedError:
        sys.exit('the fork server did not start: its traceback is in the output of the first test that needed it')
    text = json.dumps(dict(arguments=arguments, folder=os.getcwd(), environment=dict(os.environ))).encode()
    socket.send_fds(connection, [len(text).to_bytes(8, 'big')], [0, 1, 2])
    connection.sendall(text)
    for forwarded in FORWARDED:
        signal.signal(getattr(signal, forwarded), lambda number, frame: connection.sendall(bytes([number])))
    answer = connection.recv(16)
    if not answer:
        sys.exit('the fork server has ended')
    status = int(answer)
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


# The server.


class Server:
    """Server that forks a process for each request, until the last lease ends."""

    def __init__(self, listener):
        import selectors
        import signal

        self.listener = listener
        self.children, self.leases = {}, set()  # process id -> connection of the client
        self.selector = selectors.DefaultSelector()
        self.ended, wakes = socket.socketpair()
        wakes.setblocking(False)
        self.wakes = wakes
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakes.fileno())
        for readable, action in ((self.listener, self.accept), (self.ended, self.reap)):
            self.selector.register(readable, selectors.EVENT_READ, action)

    def serve(self):
        """Return the request in a forked process, and None in the server after the last lease."""
        had_leases = False
        while self.leases or not had_leases:
            ready = self.selector.select(None if had_leases else UNUSED)
            if not ready:
                return None
            for key, _ in ready:
                request = key.data(key.fileobj)
                if request is not None:
                    return request
            had_leases = had_leases or bool(self.leases)
        return None

    def watch(self, connection, action):
        self.selector.register(connection, 1, action)

    def accept(self, listener):
        import struct

        connection, _ = listener.accept()
        _, user, _ = struct.unpack('3i', connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if user != os.getuid():
            connection.close()
            return None
        first, files, _, _ = socket.recv_fds(connection, 8, 3)
        if first == LEASE:
            self.leases.add(connection)
            self.watch(connection, self.end_lease)
            return None
        length, text = int.from_bytes(first, 'big'), b''
        while len(text) < length and (part := connection.recv(length - len(text))):
            text += part
        child = os.fork() if text and len(text) == length else None  # otherwise the client has disconnected
        if child == 0:
            self.leave()
            for number, file in enumerate(files):
                os.dup2(file, number)
            for file in files:
                os.close(file)
            connection.close()
            return json.loads(text)
        for file in files:
            os.close(file)
        if child is None:
            connection.close()
            return None
        self.children[child] = connection
        self.watch(connection, lambda connection: self.signal(child, connection))
        return None

    def leave(self):
        """Close the sockets of the server in the forked process."""
        import signal

        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.selector.close()
        for each in (self.listener, self.ended, self.wakes, *self.children.values(), *self.leases):
            each.close()
        os.setsid()

    def end_lease(self, connection):
        self.selector.unregister(connection)
        self.leases.discard(connection)
        connection.close()

    def signal(self, child, connection):
        """Forward a signal; if the client was killed, kill the process, too."""
        if child not in self.children:
            return
        numbers = connection.recv(16)
        for number in numbers or [9]:
            os.kill(child, number)
        if not numbers:
            self.selector.unregister(connection)

    def reap(self, ended):
        ended.recv(64)
        while self.children:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                break
            connection = self.children.pop(child, None)
            if connection is None:
                continue
            try:
                self.selector.unregister(connection)
                connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            except (KeyError, OSError):
                pass  # the client was killed
            connection.close()


def run_as_interpreter(request, path):
    """Run the request in the forked process like an interpreter with these arguments, and exit."""
    import atexit
    import io
    import threading
    import traceback

    os.chdir(request['folder'])
    os.environ.clear()
    os.environ.update(request['environment'])
    arguments = list(request['arguments'])
    unbuffered = arguments[:1] == ['-u']
    del arguments[: int(unbuffered)]
    # A new stream, because that of the server belongs to another file, which may be seekable.
    binary = io.BufferedWriter(io.FileIO(1, 'wb', closefd=False))
    sys.stdout = io.TextIOWrapper(binary, sys.stdout.encoding, sys.stdout.errors, write_through=unbuffered)
    try:
        interpret(arguments, [*filter(None, os.environ.get('PYTHONPATH', '').split(os.pathsep)), *path])
        status = 0
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
        if exit.code is not None and not isinstance(exit.code, int):
            print(exit.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for file in (sys.stdout, sys.stderr):
        file.flush()
    os._exit(status & 0xFF)


def interpret(arguments, path):
    import runpy

    if arguments[0] == '-c':
        sys.argv, sys.path[:] = ['-c', *arguments[2:]], ['', *path]
        exec(compile(arguments[1], '<string>', 'exec'), {'__name__': '__main__'})
    elif arguments[0] == '-m':
        sys.argv, sys.path[:] = ['-m', *arguments[2:]], [os.getcwd(), *path]
        runpy.run_module(arguments[1], run_name='__main__', alter_sys=True)
    else:
        sys.argv, sys.path[:] = arguments, [os.path.dirname(os.path.abspath(arguments[0])), *path]
        runpy.run_path(arguments[0], run_name='__main__')


def listen(name):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f'\0{name}')
    listener.listen(64)
    return listener


def serve(name, modules):
    """Run two servers: one has imported the modules before ``-``, the other all modules."""
    import importlib
    import warnings

    import speedups

    own = {HERE, *os.environ.get('PYTHONPATH', '').split(os.pathsep)}
    try:
        all_of_them, few = listen(name), listen(f'{name}{CORE}')
    except OSError:
        return  # another worker started it
    speedups.disable_garbage_collection()
    for module in modules:
        if module != '-':
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                importlib.import_module(module)
        elif os.fork():
            all_of_them.close()
            break
        else:
            few.close()
    else:
        speedups.speed_up_configs()
    speedups.freeze_imported_objects()
    sys.stdout.flush()  # otherwise every process would print the messages of the imports again
    request = Server(few if all_of_them.fileno() < 0 else all_of_them).serve()
    if request is not None:
        run_as_interpreter(request, [folder for folder in sys.path if folder not in own])
    os._exit(0)  # skips the cleanup of the interpreter, which takes seconds


if __name__ == '__main__':
    if sys.argv[2] == '--serve':
        serve(sys.argv[1], sys.argv[3:])
    else:
        run(sys.argv[1], sys.argv[2:])
