"""A secret for each of the privacy rules, and texts that hold it."""

SECRETS = {
    "private_key": "-----BEGIN " + "RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA7c0ffee\n-----END RSA PRIVATE KEY-----",
    "jwt": "ey" + "JhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3OCJ9.c2lnbmF0dXJl",
    "cloud_key": "AK" + "IAIOSFODNN7C0FFEE9",
    "bearer_token": "c0ffee" * 4,
    "password": "c0ffee!secret",
    "email": "anna.c0ffee@example.com",
    "iban": "DE89370400440532013000",
    "card": "4111111111111111",
}
"""One for each rule."""

TEXTS = SECRETS | {
    "bearer_token": f"Bearer {SECRETS['bearer_token']}",
    "password": f"postgres://app:{SECRETS['password']}@db/shop",
}
"""The same where they are found."""

MASKED = {rule: text.replace(SECRETS[rule], f"[{rule}]") for rule, text in TEXTS.items()}
