# How Superset is served, here and in the image: one process is enough for a team, and imports assets/ before it answers.
wsgi_app = "shop:serve()"
workers = 1
worker_class = "gthread"
threads = 8
# Migrations, where there are no prepared metadata, and a busy machine.
timeout = 300
graceful_timeout = 2
control_socket_disable = True
