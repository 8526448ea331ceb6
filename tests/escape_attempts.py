"""Programs that try to get out of a sandbox, to take more than their share, or to stay, for `test_rewards_sandbox`.

An attempt prints ESCAPED where it gets through. It finds what it is after under the names in capitals, and `PRELUDE`.
"""

PRELUDE = """
import ctypes, errno, os, signal, socket, stat, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def attempt(f, *a):
    try:
        return f(*a)
    except (OSError, ValueError, MemoryError) as error:
        return None
def call(name, *a):
    result = getattr(libc, name)(*a)
    return result if result != -1 else None
def readable(path):
    return attempt(lambda: open(path, 'rb').read(4096))
def escaped(*what):
    print('ESCAPED', *what, flush=True)
"""

# (whether it gets through where there is no isolation, source)
ATTEMPTS = {
    # the user's files
    "read a file of the user": (True, "if readable(FILE): escaped()"),
    "read the home folder": (
        False,
        """
for base, folders, files in os.walk(HOME):
    if base in (sys.prefix + '/lib', sys.prefix + '/bin'): folders.clear(); continue
    if files: escaped(base, files)
""",
    ),
    "read the project": (True, "if readable(PROJECT): escaped()"),
    "read the passwords": (True, "if readable('/etc/shadow') or readable('/etc/passwd'): escaped()"),
    "read the environment": (
        False,
        """
import glob
if SECRET in str(os.environ): escaped()
for path in glob.glob('/proc/[0-9]*/environ') + ['/proc/self/environ']:
    if os.path.basename(os.path.dirname(path)) != str(GRADER) and SECRET.encode() in (readable(path) or b''):
        escaped(path)
""",
    ),
    "read the grader's environment": (True, "if readable(f'/proc/{GRADER}/environ'): escaped()"),
    "read by way of a symbolic link": (
        True,
        """
os.symlink(FILE, 'link')
os.symlink('/', 'root')
if readable('link') or readable('root' + FILE): escaped()
""",
    ),
    "read by way of ..": (True, "if readable('../' * 20 + FILE.lstrip('/')): escaped()"),
    "read by way of /proc/*/root and cwd": (
        True,
        """
for who in ('self', '1', str(os.getppid()), str(GRADER)):
    for way in ('root', 'cwd/../../../../../../..'):
        if readable(f'/proc/{who}/{way}{FILE}'): escaped(who, way)
""",
    ),
    "read by way of a hard link": (
        False,
        """
for path in (FILE, '/usr/bin/env', '/proc/self/exe', os.__file__):
    if attempt(os.link, path, 'hard') is None and os.path.exists('hard'): escaped(path)
""",
    ),
    "read a disk": (
        False,
        """
for path in ('/dev/vda', '/dev/sda', '/dev/nvme0n1', '/dev/mem', '/dev/kmsg', '/dev/kvm', '/dev/fuse'):
    if os.path.exists(path): escaped(path)
for kind, numbers in ((stat.S_IFBLK, (254, 0)), (stat.S_IFBLK, (8, 0)), (stat.S_IFCHR, (1, 1))):
    attempt(os.mknod, 'node', kind | 0o666, os.makedev(*numbers))
    if os.path.exists('node'): escaped(numbers)
""",
    ),
    # writing
    "write outside its folder": (
        False,
        """
for base, folders, files in os.walk('/'):
    if base in ('/proc', SCRATCH): folders.clear(); continue
    try:
        open(os.path.join(base, 'mine'), 'w').close()
        escaped(base)
    except OSError: pass
    if len(base.split('/')) > 5: folders.clear()
""",
    ),
    "write to the user's folder": (
        True,
        """
try:
    open(FOLDER + '/mine', 'w').close(); escaped()
except OSError: pass
""",
    ),
    "change system files": (
        False,
        """
for path in (sys.executable, os.__file__, '/usr/bin/env', '/usr/bin', '/etc', '/'):
    for change in (lambda: os.chmod(path, 0o777), lambda: os.chown(path, 65534, 65534),
                   lambda: os.utime(path), lambda: os.rename(path, path + '~'),
                   lambda: os.truncate(path, 0), lambda: os.unlink(path)):
        try:
            change(); escaped(path)
        except OSError: pass
""",
    ),
    # out of the file system, or into more rights
    "chroot": (False, "if attempt(os.chroot, '.') is None and os.listdir('/') == []: escaped()"),
    "mount": (
        False,
        """
os.mkdir('m')
for kind in (b'tmpfs', b'proc', b'sysfs', b'devtmpfs', b'cgroup2', b'overlay'):
    if call('mount', b'none', b'm', kind, 0, None) is not None: escaped(kind)
if call('mount', b'/', b'm', None, 4096, None) is not None: escaped('bind')
if call('mount', None, b'/', None, 32 | 4096, None) is not None: escaped('remount')
""",
    ),
    "unmount what covers the machine's /proc": (
        False,
        """
for path in (b'/proc', SCRATCH.encode(), b'/usr/lib', b'/'):
    if call('umount2', path, 2) is not None: escaped(path)
""",
    ),
    "a namespace of its own": (
        False,
        """
for flag in (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x10020000, 0x80, 0x2000000):
    if call('unshare', flag) is not None: escaped(hex(flag))
for name in ('mnt', 'pid', 'net', 'user', 'ipc', 'uts'):
    for who in ('self', '1'):
        fd = attempt(os.open, f'/proc/{who}/ns/{name}', os.O_RDONLY)
        if fd is not None and call('setns', fd, 0) is not None: escaped(who, name)
""",
    ),
    "become somebody else": (
        False,
        """
for change in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setresuid(0, 0, 0),
               lambda: os.setgroups([0]), lambda: os.setuid(1000), lambda: os.seteuid(0)):
    try:
        change(); escaped(os.getresuid())
    except OSError: pass
import struct
header, data = struct.pack('Ii', 0x20080522, 0), struct.pack('6I', *[0xffffffff] * 6)
if call('capset', header, data) is not None: escaped('capset')
""",
    ),
    "capabilities and set-user-id programs": (
        False,
        """
status = dict(line.split(':', 1) for line in open('/proc/self/status') if ':' in line)
for name in ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb'):
    if int(status[name], 16): escaped(name)
if status['NoNewPrivs'].strip() != '1' or status['Seccomp'].strip() != '2': escaped(status)
if os.getuid() == 0 or '0' in status['Groups'].split(): escaped('root')
open('mine', 'w').close()
attempt(os.chmod, 'mine', 0o4755)
for line in open('/proc/self/mountinfo'):
    place, options = line.split()[4:6]
    if 'nosuid' not in options or ('ro' not in options.split(',') and place not in ('/proc', SCRATCH)): escaped(line)
""",
    ),
    "system calls by number": (
        False,
        """
for name, number in CALLS.items():
    for numbers in (number, number | 0x40000000) if os.uname().machine == 'x86_64' else (number,):
        ctypes.set_errno(0)
        result = libc.syscall(ctypes.c_long(numbers), *[ctypes.c_long(0)] * 6)
        if result != -1 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
            escaped(name, numbers, result, ctypes.get_errno())
""",
    ),
    # processes
    "fork": (True, "if attempt(os.fork) is not None: escaped()"),
    "fork by other names": (
        True,
        """
import subprocess
for start in (lambda: subprocess.run(['/bin/true']), lambda: os.posix_spawn('/bin/true', ['true'], {}),
              lambda: os.system('true') == 0 or 1 / 0, lambda: os.forkpty()[0] or os._exit(0),
              lambda: call('vfork') or 1 / 0):
    try:
        start(); escaped()
    except (OSError, ZeroDivisionError): pass
""",
    ),
    "find the grader's and other processes": (
        True,
        """
others = [p for p in os.listdir('/proc') if p.isdigit() and int(p) != os.getpid()]
if others: escaped(others)
for pid in [*range(2, 400), GRADER]:
    if pid != os.getpid() and attempt(os.getpgid, pid) is not None: escaped(pid)
    if pid != os.getpid() and attempt(os.pidfd_open, pid) is not None: escaped('pidfd', pid)
""",
    ),
    "kill everything": (
        False,
        """
for pid in (os.getppid(), 1, 0x7fffffff, GRADER, *range(2, 400), -1):
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT):
        if pid != os.getpid(): attempt(os.kill, pid, number)
print('alive')
os.killpg(0, signal.SIGKILL)
""",
    ),
    "trace": (
        False,
        """
for request in (0, 16, 0x4206):
    for pid in (0, 1, os.getppid(), GRADER):
        if call('ptrace', request, pid, 0, 0) is not None: escaped(request, pid)
""",
    ),
    "another's memory": (
        False,
        """
buffer = ctypes.create_string_buffer(8)
class Vector(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('length', ctypes.c_size_t)]
mine = Vector(ctypes.addressof(buffer), 8)
for pid in (1, os.getppid(), GRADER):
    for name in ('process_vm_readv', 'process_vm_writev'):
        if call(name, pid, ctypes.byref(mine), 1, ctypes.byref(mine), 1, 0) is not None: escaped(name, pid)
    for name in ('mem', 'maps', 'environ', 'cmdline', 'exe', 'fd', 'root', 'status', 'task/%d/mem' % pid):
        if os.path.lexists(f'/proc/{pid}/{name}'): escaped(pid, name)
""",
    ),
    "descriptors that were left open": (
        False,
        """
for fd in range(3, 1024):
    if attempt(os.fstat, fd): escaped(fd, os.readlink(f'/proc/self/fd/{fd}'))
""",
    ),
    "raise its priority": (
        False,
        """
for change in (lambda: os.nice(-5), lambda: os.setpriority(os.PRIO_PROCESS, 0, -10),
               lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50)),
               lambda: os.write(os.open('/proc/self/oom_score_adj', os.O_WRONLY), b'-1000')):
    try:
        change(); escaped()
    except OSError: pass
""",
    ),
    "raise its limits": (
        False,
        """
import resource
for name in dir(resource):
    if name.startswith('RLIMIT_'):
        kind = getattr(resource, name)
        soft, hard = resource.getrlimit(kind)
        for limit in ((-1, -1), (hard + 1, hard + 1)) if hard != -1 else ():
            try:
                resource.setrlimit(kind, limit)
                if resource.getrlimit(kind)[1] != hard: escaped(name)
            except (OSError, ValueError): pass
""",
    ),
    # the network
    "connect by internet": (True, "s = socket.create_connection(('127.0.0.1', PORT), timeout=1); escaped()"),
    "connect to unix sockets": (
        True,
        """
for address in (UNIX, ABSTRACT):
    s = socket.socket(socket.AF_UNIX); s.connect(address); escaped()
""",
    ),
    "other kinds of sockets": (
        True,
        """
for family in range(50):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
        if attempt(socket.socket, family, kind): escaped(family, kind)
""",
    ),
    "look up a name": (True, "if socket.getaddrinfo('localhost', 80): escaped()"),
    "send without a connection": (
        True,
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT)); escaped()",
    ),
    "interfaces of the network": (
        True,
        "if os.path.exists('/sys/class/net') or os.path.exists('/proc/net/dev'): escaped()",
    ),
    # memory that no limit counts
    "memory as files": (
        True,
        """
fd = attempt(os.memfd_create, 'x')
if fd is not None: escaped('memfd')
if os.path.exists('/dev/shm'): escaped('shm')
if call('shmget', 0, 4096, 0o1600) is not None: escaped('shmget')
""",
    ),
    "a program in memory": (True, "fd = os.memfd_create('x'); os.write(fd, open('/bin/true', 'rb').read()); escaped()"),
    "keys of the kernel": (
        False,
        """
number = {'x86_64': 248, 'aarch64': 217}[os.uname().machine]
if libc.syscall(number, b'user', b'k', b'v', 1, ctypes.c_long(-3)) != -1: escaped()
""",
    ),
}

# Programs that take what they can get, and do not end by themselves, or not well.
GREEDY = {
    "spin": "while True: pass",
    "spin, deaf to signals": """
import signal
[signal.signal(n, signal.SIG_IGN) for n in range(1, 65) if n not in (9, 19, 32, 33)]
while True: pass
""",
    "spin in C": "9**9**9",
    "sleep": """
import time
time.sleep(60)
""",
    "stop itself and everybody": """
import os, signal
os.kill(1, signal.SIGSTOP)
try: os.kill(-1, signal.SIGSTOP)
except OSError: os.kill(os.getpid(), signal.SIGSTOP)
""",
    "allocate at once": """
try: bytearray(1 << 33)
except MemoryError: print('refused')
""",
    "map at once": """
import mmap
try: mmap.mmap(-1, 1 << 33)
except OSError: print('refused')
""",
    "flood the output": "while True: print('x' * 4000)",
    "flood the errors": """
import sys
while True: sys.stderr.write('x' * 4000)
""",
    "recurse": """
def f(): f()
f()
""",
    "recurse without a limit": """
import sys
sys.setrecursionlimit(1 << 30)
class A:
    def __getattr__(self, name): return getattr(self, name)
A().b
""",
    "read at address 0": """
import ctypes
ctypes.string_at(0)
""",
    "abort": """
import os
os.abort()
""",
    "kill itself": """
import os
os.kill(os.getpid(), 15)
""",
    "close everything": """
import os
os.closerange(0, 1000)
os._exit(0)
""",
    "a huge source": "exec('x = ' + '(' * 5000 + ')' * 5000)",
}

# Programs that leave children behind, where they may have any.
FORKERS = {
    "fork bomb": """
import os
while True:
    try: os.fork()
    except OSError: pass
""",
    "bomb of short-lived processes": """
import os
while True:
    try:
        if not os.fork(): os._exit(0)
    except OSError: pass
""",
    "daemon": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork(): os._exit(0)
    time.sleep(60)
    print('late')
print('gone', flush=True)
time.sleep(0.1)
""",
    "sleeping children that hold the output": """
import os, time
for _ in range(5):
    if os.fork() == 0: time.sleep(60)
print('gone')
""",
    "children deaf to signals": """
import os, signal, time
if os.fork() == 0:
    for n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)
    time.sleep(60)
print('gone')
""",
    "stopped children": """
import os, signal, time
if os.fork() == 0: os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(0.1)
print('gone')
""",
}
