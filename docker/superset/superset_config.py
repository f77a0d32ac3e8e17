# Superset's settings for the shop's dashboards.  What differs from place to place comes from the environment:
#   SUPERSET_HOME             its folder: metadata (SQLite) and secret key
#   DASHBOARD_DATABASE_URI    where the shop's database is, as role dashboard
import os
import secrets

home = os.environ["SUPERSET_HOME"]
key_file = os.path.join(home, "secret_key")
if not os.path.exists(key_file):
    with open(os.open(key_file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(42))
with open(key_file) as file:
    SECRET_KEY = file.read()

metadata_file = os.path.join(home, "superset.db")
SQLALCHEMY_DATABASE_URI = "sqlite:///" + metadata_file + "?timeout=60"
APP_NAME = "Millrace"
# Every refresh asks the database: it is the cache.
DATA_CACHE_CONFIG = {"CACHE_TYPE": "NullCache"}
# Behind plain HTTP on one's own machine; put a proxy with TLS before it, and switch these on, for anything else.
TALISMAN_ENABLED = False
SESSION_COOKIE_SAMESITE = "Lax"
RATELIMIT_ENABLED = False
AUTH_RATE_LIMITED = False
# No telemetry, no thumbnails, no alerts by mail.
WTF_CSRF_ENABLED = True
LOG_LEVEL = "WARNING"
# "Last day" in the time filter ends now, not at midnight.
DEFAULT_RELATIVE_START_TIME = "now"
DEFAULT_RELATIVE_END_TIME = "now"
