"""Random keys in the formats of vendors, in lines of code, and values that look like keys but are none. No key is real."""

import base64
import random
import string

BASE62 = string.ascii_letters + string.digits
URL_SAFE = BASE62 + "-_"
HEX = "0123456789abcdef"
UPPER32 = string.ascii_uppercase + "234567"

# A format is literal text and (characters, length); the rule that finds it comes first.
FORMATS: tuple[tuple[str, tuple[str | tuple[str, int], ...]], ...] = (
    ("aws-access-key", ("AKIA", (UPPER32, 16))),
    ("aws-access-key", ("ASIA", (UPPER32, 16))),
    *(("github-token", (prefix, (BASE62, 36))) for prefix in ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")),
    ("github-token", ("github_pat_", (BASE62, 22), "_", (BASE62, 59))),
    ("gitlab-token", ("glpat-", (URL_SAFE, 19), (BASE62, 1))),
    ("slack-token", ("xoxb-", ("123456789", 12), "-", ("123456789", 13), "-", (BASE62, 24))),
    ("slack-token", ("xoxp-", *(("123456789", 12), "-") * 3, (HEX, 32))),
    ("slack-token", ("xapp-1-A", (UPPER32, 10), "-", ("123456789", 13), "-", (HEX, 64))),
    ("stripe-key", ("sk_live_", (BASE62, 24))),
    ("stripe-key", ("rk_live_", (BASE62, 99))),
    ("google-api-key", ("AIza", (URL_SAFE, 34), (BASE62, 1))),
    ("google-oauth", ("GOCSPX-", (URL_SAFE, 27), (BASE62, 1))),
    ("npm-token", ("npm_", (BASE62, 36))),
    ("pypi-token", ("pypi-AgEIcHlwaS5vcmc", (URL_SAFE, 160), (BASE62, 1))),
    ("rubygems-token", ("rubygems_", (HEX, 48))),
    ("docker-token", ("dckr_pat_", (URL_SAFE, 26), (BASE62, 1))),
    ("huggingface-token", ("hf_", (string.ascii_letters, 34))),
    ("anthropic-key", ("sk-ant-api03-", (URL_SAFE, 93), "AA")),
    ("openai-key", ("sk-", (BASE62, 20), "T3BlbkFJ", (BASE62, 20))),
    ("openai-key", ("sk-proj-", (URL_SAFE, 74), "T3BlbkFJ", (URL_SAFE, 73), (BASE62, 1))),
    ("groq-key", ("gsk_", (BASE62, 52))),
    ("replicate-token", ("r8_", (BASE62, 37))),
    ("sendgrid-key", ("SG.", (URL_SAFE, 22), ".", (URL_SAFE, 42), (BASE62, 1))),
    ("mailgun-key", ("key-", (HEX, 32))),
    ("mailchimp-key", ((HEX, 32), "-us12")),
    ("twilio-key", ("SK", (HEX, 32))),
    ("telegram-token", (("123456789", 10), ":AA", (URL_SAFE, 32), (BASE62, 1))),
    ("digitalocean-token", ("dop_v1_", (HEX, 64))),
    ("databricks-token", ("dapi", (HEX, 32))),
    ("shopify-token", ("shpat_", (HEX, 32))),
    ("square-token", ("sq0atp-", (URL_SAFE, 21), (BASE62, 1))),
    ("vault-token", ("hvs.", (URL_SAFE, 90), (BASE62, 1))),
    ("terraform-token", ((BASE62, 14), ".atlasv1.", (BASE62, 67))),
    ("linear-key", ("lin_api_", (BASE62, 40))),
    ("notion-token", ("ntn_", (BASE62, 46))),
    ("new-relic-key", ("NRAK-", (UPPER32, 27))),
    ("grafana-token", ("glsa_", (BASE62, 32), "_", (HEX, 8))),
    ("sentry-token", ("sntryu_", (HEX, 64))),
    ("postman-key", ("PMAK-", (HEX, 24), "-", (HEX, 34))),
    ("age-key", ("AGE-SECRET-KEY-1", ("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L", 58))),
)
# Keys that only their context shows: the rule, the text before, the key, and the text after.
CONTEXTS: tuple[tuple[str, str, tuple[str, int], str], ...] = (
    ("aws-secret-key", 'AWS_SECRET_ACCESS_KEY = "', (BASE62 + "/+", 40), '"\n'),
    ("aws-secret-key", "aws_secret_access_key=", (BASE62, 40), "\n"),
    ("azure-storage-key", '"AccountName=kiln;AccountKey=', (BASE62, 86), '==;EndpointSuffix=core.windows.net"\n'),
    ("slack-webhook", 'url = "https://hooks.slack.com/services/T0AB12CD3/B0EF45GH6/', (BASE62, 24), '"\n'),
    ("discord-webhook", 'url = "https://discord.com/api/webhooks/829384756102938475/', (URL_SAFE, 68), '"\n'),
    ("password", 'DATABASE = "postgres://kiln:', (BASE62, 18), '@db.kiln.io:5432/main"\n'),
    ("secret", 'api_key = "', (BASE62, 32), '"\n'),
    ("secret", "client_secret: '", (BASE62, 40), "',\n"),
    ("secret", 'String accessToken = "', (HEX, 40), '";\n'),
    ("secret", 'config["password"] = "', (BASE62, 20), '"\n'),
    ("secret", 'SECRET_KEY: str = "', (URL_SAFE, 50), '"\n'),
    ("secret", 'next_token = None\napi_key = "', (BASE62, 32), '"\n'),
    ("secret", "export SERVICE_TOKEN=", (BASE62, 32), "\n"),
    ("secret", '{"Authorization": "Bearer ', (BASE62, 40), '"}\n'),
)
LINES = (
    'token = "{}"\n',
    "client = Client('{}')  # for tests\n",
    "  key: {}\n",
    '{{"auth": "{}"}}\n',
    "# {}\n",
    "({})\n",
)

NO_SECRETS = (
    'api_key = "your-api-key-goes-here-1"\n',
    'api_key = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"\n',
    'api_key = os.environ["API_KEY_FOR_PRODUCTION_2"]\n',
    'api_key = "<paste your key 1234 here please>"\n',
    'token = "AKIAIOSFODNN7EXAMPLE"\n',
    'aws_secret_access_key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"\n',
    'token = "ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"\n',
    'token = "ghp_0123456789abcdefghijklmnopqrstuvwxyz"\n',
    'token = "ghp_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"\n',
    'token = "sk_test_123456789012345678901234"\n',
    'token = "SG.xxxxxxxxxxxxxxxxxxxxxx.xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"\n',
    'stripe = "pk_live_T5mVw8Qz2rXb9KdLp4Yc7NhG"\n',  # keys that are published
    'SECRET_KEY = "django-insecure-change-me-please-2024"\n',
    'pad_token = "<|endoftext|>"\n',
    'next_token = "bWFya2VyOjEyMzQ1Njc4OTAxMjM0NTY3ODkw"\n',
    'unk_token="text-generation-inference-2"\n',
    'password = "correct horse battery staple"\n',
    'secret_key = "000102030405060708090a0b0c0d0e0f"\n',
    'checksum = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"\n',
    'commit = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"\n',
    'token = "django.contrib.auth.tokens.PasswordResetTokenGenerator2"\n',
    'CLASS = "sk-toggleable__label-arrow sk-estimator-doc-link-1"\n',
    "amqp://guest:guest@localhost:5672\n",
    "http://user:password@proxy.kiln.io/\n",
    "http://joe:s3cretw0rd@proxy.example.com/\n",
    'f"postgres://{user}:{password_of_user_1}@{host}/main"\n',
    "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----\n",
    "-----BEGIN PUBLIC KEY-----\n"
    + base64.b64encode(random.Random(1).randbytes(90)).decode()
    + "\n-----END PUBLIC KEY-----\n",
    "-----BEGIN CERTIFICATE-----\n"
    + base64.b64encode(random.Random(2).randbytes(90)).decode()
    + "\n-----END CERTIFICATE-----\n",
    '"eyJhbGciOiJub3Qgc28iLCAi.eyJub3RoaW5n.c2hvcnQ"\n',
    '"eyJ0aGlzIjogInRleHQifQ.eyJ0aGlzIjogInRleHQifQ.eyJ0aGlzIjogInRleHQifQ"\n',  # no "alg"
)


def make_key(rng: random.Random, parts: tuple[str | tuple[str, int], ...]) -> str:
    """A random key of a format."""
    return "".join(part if isinstance(part, str) else "".join(rng.choices(part[0], k=part[1])) for part in parts)


def plant(rng: random.Random) -> list[tuple[str, str, str]]:
    """The rule, the key, and code with the key in it, for each format and context."""
    planted = []
    for rule, parts in FORMATS:
        key = make_key(rng, parts)
        planted.append((rule, key, rng.choice(LINES).format(key)))
    for rule, before, part, after in CONTEXTS:
        key = make_key(rng, (part,))
        planted.append((rule, key, before + key + after))
    header, payload = ({"alg": "HS256", "typ": "JWT"}, {"sub": str(rng.random())})
    encoded = ".".join(
        base64.urlsafe_b64encode(str(part).replace("'", '"').encode()).decode().rstrip("=")
        for part in (header, payload)
    )
    jwt = encoded + "." + make_key(rng, ((URL_SAFE, 43),))
    return [*planted, ("jwt", jwt, f'cookie = "{jwt}"\n')]


def private_key(rng: random.Random, label: str = "PRIVATE KEY", n_bytes: int = 1200) -> str:
    """A block with a random body, which no library can load."""
    body = base64.b64encode(rng.randbytes(n_bytes)).decode()
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])
