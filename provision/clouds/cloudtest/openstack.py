"""Runs Debian's Keystone, Placement, Glance, Neutron and Nova in one PID namespace, with all that they write in /tmp.

Its arguments are a port of 127.0.0.1 for each, in that order. It says "ready" when all answer, and ends, and they with it, when
nobody holds its standard input any more. Nova's services are one process, so that they need no broker of messages; its
hypervisor makes machines of nothing. Neutron has one agent, which is a row of its database.
"""
import os
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

NAMES = ["keystone", "placement", "glance", "neutron", "nova"]
PASSWORD = "admin"


def database(name):
    return f"sqlite:////tmp/{name}.db"


def configure(ports):
    who = f"""
auth_type = password
auth_url = http://127.0.0.1:{ports["keystone"]}/v3
username = admin
password = {PASSWORD}
project_name = admin
user_domain_name = Default
project_domain_name = Default
"""
    own = {
        "keystone": """
[identity]
password_hash_rounds = 4
[fernet_tokens]
key_repository = /tmp/keys
[fernet_receipts]
key_repository = /tmp/keys
[credential]
key_repository = /tmp/keys
""",
        "placement": f"""
[placement_database]
connection = {database("placement")}
sync_on_startup = True
""",
        "glance": """
[DEFAULT]
enabled_backends = disk:file
[glance_store]
default_backend = disk
[disk]
filesystem_store_datadir = /tmp/images
[os_glance_staging_store]
filesystem_store_datadir = /tmp/images/staging
[os_glance_tasks_store]
filesystem_store_datadir = /tmp/images/tasks
[paste_deploy]
flavor = keystone
""",
        "neutron": f"""
[placement]
{who}
[nova]
endpoint_type = public
{who}
[DEFAULT]
api_paste_config = /usr/share/neutron-common/api-paste.ini
core_plugin = ml2
service_plugins = router
send_events_interval = 0
[QUOTAS]
quota_floatingip = 2
[ml2]
type_drivers = flat,vxlan
tenant_network_types = vxlan
mechanism_drivers = openvswitch
extension_drivers = port_security
[ml2_type_flat]
flat_networks = outside
[ml2_type_vxlan]
vni_ranges = 1:1000
""",
        "nova": f"""
[DEFAULT]
compute_driver = fake.FakeDriver
[api_database]
connection = {database("nova_api")}
[vnc]
enabled = False
[placement]
{who}
[neutron]
{who}
""",
    }
    for name in NAMES:
        with open(f"/tmp/{name}.conf", "w") as file:
            file.write(f"""
[DEFAULT]
host = here
transport_url = fake://
state_path = /tmp/state
use_stderr = True
[database]
connection = {database(name)}
[oslo_concurrency]
lock_path = /tmp/locks
[keystone_authtoken]
interface = public
{who}
{own[name]}""")


def tables(models, name):
    import sqlalchemy

    engine = sqlalchemy.create_engine(database(name))
    models.create_all(engine)
    return engine


def keystone(ports):
    from keystone.wsgi.api import application
    from keystone.cmd import bootstrap
    from keystone.common import provider_api, sql

    tables(sql.ModelBase.metadata, "keystone")
    bootstrap.backends.load_backends = lambda: None  # they are
    first = bootstrap.Bootstrapper()
    first.admin_username = first.admin_role_name = first.project_name = "admin"
    first.admin_password = PASSWORD
    first.region_id, first.service_name, first.public_url = "RegionOne", "keystone", f"http://127.0.0.1:{ports['keystone']}/v3"
    first.bootstrap()
    catalog = provider_api.ProviderAPIs.catalog_api
    for name, kind, path in ("placement", "placement", ""), ("glance", "image", ""), ("neutron", "network", ""), ("nova", "compute", "/v2.1"):
        catalog.create_service(kind, {"id": kind, "type": kind, "name": name, "enabled": True})
        catalog.create_endpoint(kind, {"id": kind, "service_id": kind, "interface": "public", "region_id": "RegionOne", "url": f"http://127.0.0.1:{ports[name]}{path}",
                                        "enabled": True})
    return application


def placement(ports):
    from placement.wsgi.api import application

    return application


def glance(ports):
    from glance.common.wsgi_app import init_app
    from glance.db.sqlalchemy import models

    tables(models.BASE.metadata, "glance")
    return init_app()


def neutron(ports):
    from neutron.db.migration.models import head

    with tables(head.get_metadata(), "neutron").begin() as db:
        db.exec_driver_sql("""
            insert into agents (id, agent_type, binary, topic, host, admin_state_up, created_at, started_at, heartbeat_timestamp, configurations)
            values ('00000000-0000-0000-0000-000000000001', 'Open vSwitch agent', 'neutron-openvswitch-agent', '', 'here', 1,
                    '2000-01-01 00:00:00.0', '2000-01-01 00:00:00.0', '9000-01-01 00:00:00.0', '{"tunnel_types": ["vxlan"]}')""")
    from neutron.wsgi.api import application

    writing = threading.Lock()

    def one_at_a_time(environ, start_response):
        """SQLite refuses who has read, and would write after somebody else has."""
        if environ["REQUEST_METHOD"] == "GET":
            return application(environ, start_response)
        with writing:
            return list(application(environ, start_response))

    return one_at_a_time


def nova(ports):
    from nova.cmd import manage  # the first of nova's, which makes threads green
    from nova import config, objects, service
    from oslo_log import log
    from paste import deploy

    config.parse_args(["nova", "--config-file", "/tmp/nova.conf"])
    log.setup(config.CONF, "nova")
    objects.register_all()
    manage.ApiDbCommands().sync()
    cells = manage.CellV2Commands()
    cells.map_cell0(database("nova_cell0"))
    manage.DbCommands().sync()
    cells.create_cell("cell1", transport_url="fake://", database_connection=database("nova"))
    while not answers(ports["keystone"]) or not answers(ports["placement"]):
        time.sleep(0.1)
    for topic in "conductor", "scheduler", "compute":
        service.Service.create(binary="nova-" + topic, topic=topic).start()
    cells.discover_hosts(by_service=True)
    return deploy.loadapp("config:/usr/share/nova-common/api-paste.ini", name="osapi_compute")


def serve(name, ports):
    application = globals()[name](ports)
    from werkzeug.serving import run_simple

    run_simple("127.0.0.1", ports[name], application, threaded=True)


def answers(port):
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60)
    except urllib.error.HTTPError:
        pass
    except OSError:
        return False
    return True


def main(ports):
    os.environ.update({"HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1", "OS_NEUTRON_CONFIG_FILES": "neutron.conf"})
    os.environ.update({f"OS_{name.upper()}_CONFIG_DIR": "/tmp" for name in NAMES})
    for name in "keys", "images", "state", "locks":
        os.mkdir("/tmp/" + name, 0o700)
    from cryptography.fernet import Fernet

    for name in "01":
        with open("/tmp/keys/" + name, "wb") as file:
            file.write(Fernet.generate_key())
    for name in *NAMES, "nova_api", "nova_cell0":
        with sqlite3.connect(f"/tmp/{name}.db") as db:
            db.execute("pragma journal_mode = wal")  # has nobody who writes wait for those who read
    configure(ports)
    os.symlink("/tmp/glance.conf", "/tmp/glance-api.conf")
    os.symlink("/usr/share/glance-common/glance-api-paste.ini", "/tmp/glance-api-paste.ini")

    def ended():
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=ended, daemon=True).start()
    started = {name: subprocess.Popen([sys.executable, __file__, *sys.argv[1:], name], stdin=subprocess.DEVNULL, stdout=sys.stderr) for name in NAMES}
    for name, process in started.items():
        while not answers(ports[name]):
            if process.poll() is not None:
                sys.exit(name + " ended")
            time.sleep(0.1)
    print("ready", end="", flush=True)
    process.wait()


PORTS = dict(zip(NAMES, map(int, sys.argv[1:6])))
if len(sys.argv) > 6:
    name = sys.argv[6]
    del sys.argv[1:]
    serve(name, PORTS)
else:
    main(PORTS)
