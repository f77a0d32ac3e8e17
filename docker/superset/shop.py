"""
Superset with the shop's dashboards in it.
    gunicorn 'shop:serve()'     makes the metadata if there are none, imports assets/, and serves
    python shop.py prepare FILE writes metadata without assets or users to FILE: migrations take long, and are the same for all

Environment, besides superset_config.py's:
    SUPERSET_USER, SUPERSET_PASSWORD    who may log in (default: admin, and no default password)
    SUPERSET_PREPARED                   such a FILE
"""
import os
import shutil
import sys
from pathlib import Path

here = Path(__file__).resolve().parent


def migrate(app):
    """The tables of Superset's metadata, its roles and their permissions."""
    import flask_migrate
    from superset import appbuilder, db, security_manager
    from superset import migrations

    with app.app_context():
        flask_migrate.upgrade(directory=str(Path(migrations.__file__).parent))
        appbuilder.add_permissions(update_perms=True)
        security_manager.sync_role_definitions()
        db.session.commit()


def user(security_manager):
    """The one who may log in, with the password of the environment."""
    name, password = os.environ.get("SUPERSET_USER", "admin"), os.environ["SUPERSET_PASSWORD"]
    found = security_manager.find_user(username=name)
    if found:
        security_manager.reset_password(found.id, password)
        return found
    role = security_manager.find_role("Admin")
    return security_manager.add_user(name, "Shop", "Keeper", name + "@localhost", role, password)


def import_assets():
    """What is in assets/ replaces what is there under the same uuids."""
    import yaml
    from sqlalchemy.engine import make_url
    from superset.commands.importers.v1.assets import ImportAssetsCommand

    contents = {str(file.relative_to(here / "assets")): file.read_text() for file in sorted((here / "assets").rglob("*.yaml"))}
    uri = make_url(os.environ["DASHBOARD_DATABASE_URI"])
    passwords = {}
    for name in [name for name in contents if name.startswith("databases/")]:
        database = yaml.safe_load(contents[name])
        database["sqlalchemy_uri"] = uri.set(password="XXXXXXXXXX").render_as_string(hide_password=False)
        contents[name] = yaml.safe_dump(database)
        passwords[name] = uri.password or ""
    # Dashboard is what Superset exports, and its import page asks for; assets replaces datasets and charts, too.
    contents["metadata.yaml"] = contents["metadata.yaml"].replace("type: Dashboard", "type: assets")
    ImportAssetsCommand(contents, passwords=passwords).run()


def serve():
    from superset_config import metadata_file

    prepared = os.environ.get("SUPERSET_PREPARED")
    if prepared and not os.path.exists(metadata_file):
        shutil.copyfile(prepared, metadata_file + ".new")
        os.replace(metadata_file + ".new", metadata_file)
    fresh = not os.path.exists(metadata_file)

    from superset.app import create_app

    app = create_app()
    if fresh:
        migrate(app)
    with app.app_context():
        from superset import security_manager
        from superset.utils.core import override_user

        with override_user(user(security_manager)):
            import_assets()
    return app


def prepare(file):
    from superset_config import metadata_file
    from superset.app import create_app

    migrate(create_app())
    shutil.move(metadata_file, file)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "prepare":
        sys.exit("usage: shop.py prepare FILE")
    prepare(sys.argv[2])
