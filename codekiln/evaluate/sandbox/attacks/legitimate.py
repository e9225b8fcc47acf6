"""Programs that use what solutions use. All must pass."""

from codekiln.evaluate.programs import TestedProgram
from codekiln.evaluate.sandbox.attacks.attack import RIGHT, Attack

PROGRAMS = {
    "adds": ("def f(a, b):\n    return a + b\n", "assert f(1, 2) == 3"),
    "recurses 900 deep": ("def f(n):\n    return n and 1 + f(n - 1)\n", "assert f(900) == 900"),
    "recurses with its own limit": (
        "import sys\nsys.setrecursionlimit(20000)\ndef f(n):\n    return n and 1 + f(n - 1)\n",
        "assert f(10000) == 10000",
    ),
    "uses 300 MB": ("def f():\n    return len(bytearray(300 << 20))\n", "assert f() == 300 << 20"),
    "uses threads": (
        "from concurrent.futures import ThreadPoolExecutor\ndef f(items):\n"
        "    with ThreadPoolExecutor(8) as pool:\n        return list(pool.map(abs, items))\n",
        "assert f([-1, 2]) == [1, 2]",
    ),
    "uses asyncio": (
        "import asyncio\nasync def work(n):\n    await asyncio.sleep(0)\n    return n * 2\n"
        "def f(n):\n    return asyncio.run(work(n))\n",
        "assert f(3) == 6",
    ),
    "uses temporary files": (
        "import tempfile\ndef f(text):\n    with tempfile.TemporaryFile('w+') as file:\n"
        "        file.write(text)\n        file.seek(0)\n        return file.read()\n",
        "assert f('x') == 'x'",
    ),
    "writes in its folder": (
        "import os\ndef f(text):\n    os.makedirs('a/b')\n    open('a/b/c', 'w').write(text)\n    os.rename('a/b/c', 'd')\n"
        "    return open('d').read(), os.getcwd() != '/'\n",
        "assert f('x') == ('x', True)",
    ),
    "uses the standard library": (
        "import datetime, decimal, fractions, hashlib, heapq, json, re, sqlite3, statistics, zlib\nfrom dataclasses import "
        "dataclass\n@dataclass\nclass P:\n    x: int\ndef f():\n    d = datetime.date(2024, 2, 28) + datetime.timedelta(1)\n"
        "    return [str(d), re.sub('a', 'b', 'aa'), json.dumps([P(1).x]), statistics.mean([1, 3]),\n"
        "            decimal.Decimal('1.10'), fractions.Fraction(1, 3), hashlib.md5(b'').hexdigest()[:4],\n"
        "            len(zlib.compress(b'0' * 100)) < 50, sqlite3.connect(':memory:').execute('select 1').fetchone()]\n",
        "from decimal import Decimal\nfrom fractions import Fraction\n"
        "assert f() == ['2024-02-29', 'bb', '[1]', 2, Decimal('1.10'), Fraction(1, 3), 'd41d', True, (1,)]",
    ),
    "returns large integers": ("def f(n):\n    return 7 ** n\n", "assert f(5000) == 7 ** 5000"),
    "returns all kinds of data": (
        "def f():\n    return (1, 'é\\ud800', None, {2.5: {1, 2}}, [b'x', frozenset('a'), 1j, range(3)], True, float('inf'))\n",
        "assert f() == (1, 'é\\ud800', None, {2.5: {1, 2}}, [b'x', frozenset('a'), 1j, range(3)], True, float('inf'))\n"
        "assert type(f()[5]) is bool and type(f()[0]) is int",
    ),
    "returns a subclass": (
        "from collections import Counter, defaultdict, namedtuple\nP = namedtuple('P', 'x y')\n"
        "def f(text):\n    d = defaultdict(int)\n    d['x'] += 1\n    return Counter(text), d, P(1, 2)\n",
        "assert f('aab') == ({'a': 2, 'b': 1}, {'x': 1}, (1, 2))",
    ),
    "returns a generator": ("def f(n):\n    yield from range(n)\n", "assert list(f(3)) == [0, 1, 2]"),
    "changes its arguments": (
        "def f(items, table):\n    items.sort()\n    items[0].append(9)\n    table['x'] = items.pop()\n",
        "inner = [1]\nitems, table = [inner, [2]], {}\nf(items, table)\n"
        "assert items == [[1, 9]] and table == {'x': [2]} and inner == [1, 9]",
    ),
    "raises what the tests expect": (
        "def f(x):\n    if x < 0:\n        raise ValueError('negative')\n    return {}['x']\n",
        "try:\n    f(-1)\n    assert False\nexcept ValueError as error:\n    assert str(error) == 'negative'\n"
        "try:\n    f(1)\n    assert False\nexcept KeyError as error:\n    assert error.args == ('x',)",
    ),
    "prints a megabyte": (
        "def f():\n    for _ in range(1000):\n        print('x' * 1000)\n    return 1\n",
        "assert f() == 1",
    ),
    "has classes": (
        "class Stack:\n    def __init__(self):\n        self.items = []\n    def push(self, x):\n        self.items.append(x)\n"
        "def total(stacks):\n    return sum(sum(s.items) for s in stacks)\n",
        "a, b = Stack(), Stack()\na.push(1)\nb.push(2)\nassert total([a, b]) == 3 and a.items == [1]",
    ),
    "handles a signal": (
        "import signal\ndef stop(number, frame):\n    raise TimeoutError\ndef f():\n    signal.signal(signal.SIGALRM, stop)\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0.01)\n    try:\n        while True:\n            pass\n"
        "    except TimeoutError:\n        return 'stopped'\n",
        "assert f() == 'stopped'",
    ),
}


def attacks() -> list[Attack]:
    return [
        Attack(name=name, kind="legitimate", program=TestedProgram(source=source, tests=tests), expected=RIGHT)
        for name, (source, tests) in PROGRAMS.items()
    ]
