"""The filter of system calls: an allow-list of the fork server, and a second filter that a program gets on top.

The first filter allows the calls of PROGRAM_CALLS and SERVER_CALLS; every other one returns EPERM. The second one takes away
what only the server needs: to fork, to signal other processes, to change limits, modes and its own confinement.
"""

import ctypes
import errno
import struct

from codekiln.evaluate.sandbox.syscalls import PR_SET_NO_NEW_PRIVS, architecture, prctl, system_call

# name:number on x86-64:number on aarch64. "-" is a call that the architecture does not have.
PROGRAM_CALLS = """
    read:0:63 write:1:64 close:3:57 fstat:5:80 lseek:8:62 mmap:9:222 mprotect:10:226 munmap:11:215 brk:12:214
    rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136
    rt_sigtimedwait:128:137 rt_sigsuspend:130:133 sigaltstack:131:132 pread64:17:67 pwrite64:18:68 readv:19:65
    writev:20:66 preadv:295:69 pwritev:296:70 sched_yield:24:124 mremap:25:216 msync:26:227 mincore:27:232
    madvise:28:233 dup:32:23 dup3:292:24 nanosleep:35:101 getitimer:36:102 setitimer:38:103 getpid:39:172
    getppid:110:173 gettid:186:178 getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177
    getresuid:118:148 getresgid:120:150 getgroups:115:158 getpgid:121:155 getsid:124:156 sendto:44:206
    recvfrom:45:207 sendmsg:46:211 recvmsg:47:212 shutdown:48:210 getsockname:51:204 getpeername:52:205
    getsockopt:55:209 setsockopt:54:208 pipe2:293:59 exit:60:93 exit_group:231:94 wait4:61:260 uname:63:160
    fcntl:72:25 flock:73:32 fsync:74:82 fdatasync:75:83 ftruncate:77:46 getdents64:217:61 getcwd:79:17
    chdir:80:49 fchdir:81:50 mkdirat:258:34 unlinkat:263:35 renameat:264:38 renameat2:316:276 linkat:265:37
    symlinkat:266:36 readlinkat:267:78 umask:95:166 gettimeofday:96:169 getrusage:98:165 sysinfo:99:179
    times:100:153 statfs:137:43 fstatfs:138:44 futex:202:98 futex_waitv:449:449 sched_getaffinity:204:123
    sched_getparam:143:121 sched_getscheduler:145:120 sched_get_priority_max:146:125
    sched_get_priority_min:147:126 set_tid_address:218:96 set_robust_list:273:99 get_robust_list:274:100
    restart_syscall:219:128 clock_gettime:228:113 clock_getres:229:114 clock_nanosleep:230:115
    epoll_create1:291:20 epoll_ctl:233:21 epoll_pwait:281:22 epoll_pwait2:441:441 openat:257:56
    newfstatat:262:79 faccessat:269:48 faccessat2:439:439 pselect6:270:72 ppoll:271:73 eventfd2:290:19
    timerfd_create:283:85 timerfd_settime:286:86 timerfd_gettime:287:87 signalfd4:289:74 timer_create:222:107
    timer_settime:223:110 timer_gettime:224:108 timer_getoverrun:225:109 timer_delete:226:111
    getrandom:318:278 memfd_create:319:279 statx:332:291 rseq:334:293 getcpu:309:168 membarrier:324:283
    copy_file_range:326:285 sendfile:40:71 close_range:436:436 getrlimit:97:163 fallocate:285:47
    fadvise64:221:223 getpriority:140:141 open:2:- stat:4:- lstat:6:- poll:7:- access:21:- pipe:22:-
    select:23:- dup2:33:- pause:34:- alarm:37:- getpgrp:111:- getdents:78:- rename:82:- mkdir:83:- rmdir:84:-
    creat:85:- unlink:87:- link:86:- symlink:88:- readlink:89:- time:201:- epoll_create:213:- epoll_wait:232:-
    eventfd:284:- arch_prctl:158:-
"""
SERVER_CALLS = """
    clone:56:220 kill:62:129 tgkill:234:131 prctl:157:167 prlimit64:302:261 seccomp:317:277 fchmodat:268:53
    fchmod:91:52 chmod:90:- capset:126:91
"""
SOCKETPAIR, IOCTL, CLONE3 = (53, 199), (16, 29), (435, 435)

AUDIT_ARCHITECTURES = (0xC000003E, 0xC00000B7)
X32_BIT = 0x40000000
LOAD, EQUAL, GREATER_OR_EQUAL, ANY_BIT, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
ALLOW, KILL_PROCESS = 0x7FFF0000, 0x80000000
REFUSE, MISSING = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
NUMBER, ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
CLONE_THREAD = 0x00010000
ALLOWED_IOCTLS = (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def argument(n: int, *, high: bool = False) -> int:
    """The offset of a half of an argument in struct seccomp_data, on a little-endian machine."""
    return 16 + 8 * n + 4 * high


def numbers(table: str) -> dict[str, int]:
    """The calls of a table that this machine has."""
    index = architecture()
    rows = (entry.split(":") for entry in table.split())
    return {row[0]: int(row[1 + index]) for row in rows if row[1 + index] != "-"}


def when(number: int, body: list[Instruction]) -> list[Instruction]:
    """Instructions for one call; the next block is entered with the number of the call loaded."""
    return [(EQUAL, 0, len(body), number), *body]


def server_filter() -> list[Instruction]:
    """The allow-list."""
    index = architecture()
    code: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, AUDIT_ARCHITECTURES[index]),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, NUMBER),
        (GREATER_OR_EQUAL, 0, 1, X32_BIT),
        (RETURN, 0, 0, KILL_PROCESS),
    ]
    for number in sorted((numbers(PROGRAM_CALLS) | numbers(SERVER_CALLS)).values()):
        code += when(number, [(RETURN, 0, 0, ALLOW)])
    # glibc tries clone3 first. Its flags are in memory, where a filter cannot read them, so clone must be used.
    code += when(CLONE3[index], [(RETURN, 0, 0, MISSING)])
    # A stream between the program and itself, which asyncio needs. A datagram socket could address others.
    pair: list[Instruction] = [
        (LOAD, 0, 0, argument(0)),
        (EQUAL, 0, 4, 1),  # AF_UNIX
        (LOAD, 0, 0, argument(1)),
        (AND, 0, 0, 0xF),
        (EQUAL, 0, 1, 1),  # SOCK_STREAM
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, REFUSE),
    ]
    code += when(SOCKETPAIR[index], pair)
    requests: list[Instruction] = [(LOAD, 0, 0, argument(1))]
    for request in ALLOWED_IOCTLS:
        requests += when(request, [(RETURN, 0, 0, ALLOW)])
    code += when(IOCTL[index], [*requests, (RETURN, 0, 0, REFUSE)])
    return [*code, (RETURN, 0, 0, REFUSE)]


def program_filter(pid: int) -> list[Instruction]:
    """What a program may not do, although its server may."""
    calls = numbers(PROGRAM_CALLS) | numbers(SERVER_CALLS)
    refused: list[Instruction] = [(RETURN, 0, 0, REFUSE)]
    code: list[Instruction] = [(LOAD, 0, 0, NUMBER)]
    for name in ("seccomp", "fchmodat", "fchmod", "chmod", "capset"):
        if name in calls:
            code += when(calls[name], refused)
    code += when(
        calls["clone"],
        [(LOAD, 0, 0, argument(0)), (ANY_BIT, 0, 1, CLONE_THREAD), (RETURN, 0, 0, ALLOW), *refused],
    )
    for name, value in (("kill", pid), ("tgkill", pid), ("prctl", 15)):  # PR_SET_NAME
        code += when(calls[name], [(LOAD, 0, 0, argument(0)), (EQUAL, 0, 1, value), (RETURN, 0, 0, ALLOW), *refused])
    reading: list[Instruction] = [  # prlimit64 with no new limit
        (LOAD, 0, 0, argument(2)),
        (EQUAL, 0, 3, 0),
        (LOAD, 0, 0, argument(2, high=True)),
        (EQUAL, 0, 1, 0),
        (RETURN, 0, 0, ALLOW),
        *refused,
    ]
    return [*code, *when(calls["prlimit64"], reading), (RETURN, 0, 0, ALLOW)]


class SockFprog(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def assemble(code: list[Instruction]) -> bytes:
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def install(code: bytes) -> None:
    """Installs an assembled filter in this process, for good. Raises OSError."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    program = SockFprog(len(code) // 8, code)
    system_call("seccomp", 1, 0, ctypes.byref(program))  # SECCOMP_SET_MODE_FILTER
