#!/usr/bin/env python3
"""
What docker compose does with a compose file, by buildah and without a daemon, as far as docker/compose.yaml goes.
    compose.py check FILE                     names what is wrong with the file; variables come from the environment
    compose.py run FILE STATE SERVICE [-- PROGRAM ...]
                                              runs one service until SIGTERM, as compose would: waits for what it depends on, starts it,
                                              asks its health check, starts it again as its restart policy says.  PROGRAM stands for an image
                                              that is not built here.  All that is known of it is in STATE/SERVICE.json.
    compose.py stop STATE SERVICE             ends it, as compose does: its image's signal, its time, then SIGKILL
    compose.py signal STATE SERVICE SIGNAL    sends a signal to its main process
The namespaces are the caller's: services share one network, in which each has its own name.
"""
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import yaml


def interpolate(text, environ):
    """${NAME}, ${NAME:-default}, $$."""
    def one(match):
        if match[0] == "$$":
            return "$"
        if match["name"] is None:
            raise ValueError(f"cannot read {text!r}")
        value = environ.get(match["name"], "")
        if value == "" and match["default"] is None:
            raise ValueError(f"{match['name']} is not set and has no default")
        return value or match["default"]

    return re.sub(r"\$\$|\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}|\$", one, text)


def resolved(value, environ):
    if isinstance(value, dict):
        return {key: resolved(part, environ) for key, part in value.items()}
    if isinstance(value, list):
        return [resolved(part, environ) for part in value]
    return interpolate(value, environ) if isinstance(value, str) else value


class Strict(yaml.SafeLoader):
    """A key that comes twice is an error, not the last one's."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len(keys) != len(set(keys)):
            raise ValueError(f"line {node.start_mark.line + 1}: a key comes twice")
        return super().construct_mapping(node, deep)


def load(file):
    with open(file) as stream:
        return resolved(yaml.load(stream, Strict), os.environ)


def seconds(duration):
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", duration)
    if "".join(a + b for a, b in parts) != duration or not parts:
        raise ValueError(f"{duration!r} is no duration")
    return sum(float(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit] for number, unit in parts)


# ---- check ----

SERVICE_KEYS = {
    "build", "cap_drop", "command", "depends_on", "entrypoint", "environment", "healthcheck", "image", "init", "ports", "read_only", "restart",
    "security_opt", "shm_size", "stop_grace_period", "tmpfs", "user", "volumes",
}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}


def ignored(path, patterns):
    """Whether .dockerignore keeps a path out of the build: the last pattern that fits decides."""
    out = False
    for pattern in patterns:
        keep, pattern = pattern.startswith("!"), pattern.lstrip("!").strip("/")
        regex = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if re.fullmatch(regex + "(?:/.*)?", path):
            out = not keep
    return out


def dockerfile_problems(context, file):
    problems, stages, patterns = [], [], []
    if os.path.exists(os.path.join(context, ".dockerignore")):
        with open(os.path.join(context, ".dockerignore")) as stream:
            patterns = [line.strip() for line in stream if line.strip() and not line.startswith("#")]
    with open(os.path.join(context, file)) as stream:
        lines = re.sub(r"\\\n(?:\s*#.*\n)*", " ", stream.read()).split("\n")
    for line in lines:
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "FROM":
            if re.match(r"[^/]*[.:][^/]*/", words[1]):
                problems.append(f"{file}: {words[1]} names a registry")
            stages.append(words[3] if len(words) == 4 else None)
        elif words[0] == "COPY":
            options = [word for word in words[1:] if word.startswith("--")]
            stage = next((word[7:] for word in options if word.startswith("--from=")), None)
            if stage is not None:
                if stage not in stages:
                    problems.append(f"{file}: there is no stage {stage}")
                continue
            for source in [word for word in words[1:-1] if not word.startswith("--")]:
                if not os.path.exists(os.path.join(context, source)):
                    problems.append(f"{file}: there is no {source}")
                elif ignored(source.strip("/"), patterns):
                    problems.append(f"{file}: .dockerignore leaves {source} out")
    if not stages:
        problems.append(f"{file}: no FROM")
    return problems


def service_problems(name, service, project, folder):
    services, volumes = project["services"], project.get("volumes") or {}
    for key in set(service) - SERVICE_KEYS:
        yield f"unknown key {key}"
    build = service.get("build")
    built = {other.get("image") for other in services.values() if "build" in other}
    if "image" not in service:
        yield "no image"
    elif build is None and service["image"] not in built:
        if not re.fullmatch(r"[a-z0-9._-]+(/[a-z0-9._-]+)?:[\w.-]+", service["image"]):
            yield f"{service['image']} is no image with a version, and nothing builds it"
    if build is not None:
        context = os.path.join(folder, build["context"])
        if not os.path.isfile(os.path.join(context, build["dockerfile"])):
            yield f"there is no {build['dockerfile']} in {build['context']}"
        else:
            yield from dockerfile_problems(context, build["dockerfile"])
    for other, how in service.get("depends_on", {}).items():
        if other not in services:
            yield f"depends on {other}, which is no service"
            continue
        if set(how) != {"condition"} or how["condition"] not in CONDITIONS:
            yield f"depends on {other} by an unknown condition"
        check = services[other].get("healthcheck", {"disable": True})
        if how.get("condition") == "service_healthy" and check.get("disable"):
            yield f"waits for the health of {other}, which has no health check"
        if how.get("condition") == "service_completed_successfully" and services[other].get("restart") in ("always", "unless-stopped"):
            yield f"waits for the end of {other}, which never ends"
    for volume in service.get("volumes", []):
        source, target = volume.split(":")[:2]
        if not target.startswith("/"):
            yield f"{target} is no absolute path"
        if source.startswith((".", "/")):
            if not os.path.exists(os.path.join(folder, source)):
                yield f"there is no {source}"
            if volume.split(":")[2:] != ["ro"]:
                yield f"{source} can be written"
        elif source not in volumes:
            yield f"there is no volume {source}"
    for port in service.get("ports", []):
        if not re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port):
            yield f"port {port} is open to others by default"
    check = service.get("healthcheck")
    if check is None:
        yield "says nothing about its health"
    elif not check.get("disable"):
        if not isinstance(check.get("test"), list) or check["test"][0] not in ("CMD", "CMD-SHELL") or len(check["test"]) < 2:
            yield "its health check is no command"
        for key in ("interval", "timeout", "start_period"):
            seconds(check[key])
        int(check["retries"])
    if service.get("restart") not in ("always", "unless-stopped", "on-failure"):
        yield "is not started again"
    for key, value in service.get("environment", {}).items():
        if not isinstance(value, str):
            yield f"{key} is no text"


def problems(file):
    try:
        project = load(file)
    except (yaml.YAMLError, ValueError) as error:
        return [str(error)]
    folder = os.path.dirname(os.path.abspath(file))
    found = [f"unknown key {key}" for key in set(project) - {"name", "services", "volumes"}]
    for name, service in project["services"].items():
        try:
            found += [f"{name}: {problem}" for problem in service_problems(name, service, project, folder)]
        except (KeyError, TypeError, ValueError) as error:
            found.append(f"{name}: {error!r}")
    used = {volume.split(":")[0] for service in project["services"].values() for volume in service.get("volumes", [])}
    found += [f"nobody uses volume {volume}" for volume in set(project.get("volumes") or {}) - used]
    ports = [port.rsplit(":", 1)[0] for service in project["services"].values() for port in service.get("ports", [])]
    found += [f"two services want {port}" for port in set(ports) if ports.count(port) > 1]

    def circle(name, above):
        return name in above or any(circle(other, above | {name}) for other in project["services"].get(name, {}).get("depends_on", {}))

    found += [f"{name}: depends on itself" for name in project["services"] if circle(name, set())]
    return found


# ---- run ----

def buildah(*arguments):
    return subprocess.run(["buildah", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def child_of(parent):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as stream:
                if int(stream.read().rpartition(")")[2].split()[1]) == parent:
                    return int(pid)
        except OSError:
            pass
    return None


class Service:
    def __init__(self, file, state, name, stand_in):
        self.project = load(file)
        self.folder, self.state, self.name, self.stand_in = os.path.dirname(os.path.abspath(file)), state, name, stand_in
        self.service = self.project["services"][name]
        self.environ = self.service.get("environment", {})
        self.known = {"supervisor": os.getpid(), "starts": 0, "running": False, "health": "starting", "status": None, "pid": None, "user": None}
        self.ending, self.lock, self.process = threading.Event(), threading.Lock(), None
        if stand_in:
            self.image, self.command = {}, stand_in
        else:
            self.prepare()

    def note(self, **values):
        with self.lock:
            self.known.update(values)
            with open(f"{self.state}/{self.name}.json.new", "w") as stream:
                json.dump(self.known, stream)
            os.replace(stream.name, f"{self.state}/{self.name}.json")

    def prepare(self):
        """The container, its volumes and its command."""
        image = "localhost/" + self.service["image"]
        self.image = json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"]
        self.container = f"{self.name}-container"
        if self.container not in buildah("containers", "--format", "{{.ContainerName}}").split():
            buildah("from", "--pull=never", "--name", self.container, image)
            # Otherwise buildah mounts a volume of its own there, too.
            for path in self.image.get("Volumes") or {}:
                buildah("config", "--volume", path + "-", self.container)
        self.root = buildah("mount", self.container)
        entrypoint = self.service.get("entrypoint", self.image.get("Entrypoint") or [])
        fallback = [] if "entrypoint" in self.service else self.image.get("Cmd") or []
        self.command = entrypoint + self.service.get("command", fallback)
        self.options = ["-v", f"{self.state}/hosts:/etc/hosts:ro"]
        for volume in self.service.get("volumes", []):
            source, target, *mode = volume.split(":")
            if source.startswith((".", "/")):
                source = os.path.normpath(os.path.join(self.folder, source))
            else:
                source = f"{self.state}/volumes/{source}"
                if not os.path.exists(source):
                    # A new volume gets its owner from the image's folder.
                    os.makedirs(source)
                    inside = os.stat(self.root + target) if os.path.exists(self.root + target) else os.stat("/")
                    os.chown(source, inside.st_uid, inside.st_gid)
                    os.chmod(source, inside.st_mode & 0o7777)
            self.options += ["-v", ":".join([source, target, *mode])]
        for capability in self.service.get("cap_drop", []):
            self.options += [f"--cap-drop={capability}"]
        for key, value in self.environ.items():
            self.options += ["-e", f"{key}={value}"]

    def popen(self, command, log):
        if self.stand_in:
            return subprocess.Popen(command, env={**os.environ, **self.environ}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        user = ["--user", self.service["user"]] if "user" in self.service else []
        return subprocess.Popen(["buildah", "run", *self.options, *user, self.container, "--", *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                start_new_session=True)

    def main_pid(self, pid):
        """Of the process in the container: below buildah's own."""
        while pid is not None and not self.stand_in:
            try:
                if not os.path.basename(os.readlink(f"/proc/{pid}/exe")).startswith(("buildah", "memfd:buildah")):
                    return pid
            except OSError:
                return None
            pid = child_of(pid)
        return pid

    def await_others(self):
        for other, how in self.service.get("depends_on", {}).items():
            while not self.ending.is_set():
                try:
                    with open(f"{self.state}/{other}.json") as stream:
                        known = json.load(stream)
                except OSError:
                    known = {}
                if {"service_started": bool(known.get("starts")), "service_healthy": known.get("running") and known.get("health") == "healthy",
                    "service_completed_successfully": known.get("status") == 0 and not known.get("running")}[how["condition"]]:
                    break
                time.sleep(0.1)

    def watch_health(self):
        check = self.service.get("healthcheck", {"disable": True})
        if check.get("disable"):
            return
        test = check["test"][1:] if check["test"][0] == "CMD" else ["/bin/sh", "-c", check["test"][1]]
        process, begun, failures = self.process, time.monotonic(), 0
        while process is self.process and process.poll() is None and not self.ending.wait(seconds(check["interval"])):
            with open(f"{self.state}/{self.name}.health.log", "w") as log:
                asked = self.popen(test, log)
                try:
                    good = asked.wait(seconds(check["timeout"])) == 0
                except subprocess.TimeoutExpired:
                    os.killpg(asked.pid, signal.SIGKILL)
                    asked.wait()
                    good = False
            if process is not self.process:
                break
            failures = 0 if good else failures + 1
            if good:
                self.note(health="healthy")
            elif failures >= check["retries"] and (self.known["health"] == "healthy" or time.monotonic() - begun > seconds(check["start_period"])):
                self.note(health="unhealthy")

    def run(self):
        self.note()
        signal.signal(signal.SIGTERM, lambda *_: self.ending.set())
        self.await_others()
        pause = 0.1
        while not self.ending.is_set():
            with open(f"{self.state}/{self.name}.log", "a") as log:
                self.process = self.popen(self.command, log)
            self.note(starts=self.known["starts"] + 1, running=True, health="starting", pid=None)
            threading.Thread(target=self.watch_health, daemon=True).start()
            while self.process.poll() is None and not self.ending.is_set():
                pid = self.main_pid(self.process.pid)
                if pid:
                    try:
                        user = os.stat(f"/proc/{pid}").st_uid
                    except OSError:
                        continue
                    if (pid, user) != (self.known["pid"], self.known["user"]):
                        self.note(pid=pid, user=user)
                self.ending.wait(0.1)
            if self.ending.is_set():
                self.stop()
            status = self.process.wait()
            self.note(running=False, health="starting", status=status, pid=None)
            policy = self.service.get("restart")
            if self.ending.is_set() or policy == "on-failure" and status == 0 or policy is None:
                break
            self.ending.wait(pause)
            pause = min(pause * 2, 5)

    def stop(self):
        number = self.image.get("StopSignal") or "SIGTERM"
        deadline = time.monotonic() + seconds(self.service.get("stop_grace_period", "10s"))
        pid = self.main_pid(self.process.pid)
        if pid and self.process.poll() is None:
            os.kill(pid, getattr(signal, number))
        while self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.process.poll() is None:
            print(f"{self.name}: killed after its grace period", file=sys.stderr)
            os.killpg(self.process.pid, signal.SIGKILL)
            pid = self.main_pid(self.process.pid)
            if pid:
                os.kill(pid, signal.SIGKILL)


def main():
    arguments = sys.argv[1:]
    program = None
    if "--" in arguments:
        at = arguments.index("--")
        arguments, program = arguments[:at], arguments[at + 1:]
    if arguments[:1] == ["check"] and len(arguments) == 2:
        found = problems(arguments[1])
        print("\n".join(found), end="\n" if found else "")
        sys.exit(1 if found else 0)
    if arguments[:1] == ["run"] and len(arguments) == 4:
        os.makedirs(arguments[2], exist_ok=True)
        return Service(arguments[1], os.path.abspath(arguments[2]), arguments[3], program).run()
    if arguments[:1] == ["stop"] and len(arguments) == 3 or arguments[:1] == ["signal"] and len(arguments) == 4:
        with open(f"{arguments[1]}/{arguments[2]}.json") as stream:
            known = json.load(stream)
        if arguments[0] == "stop":
            return os.kill(known["supervisor"], signal.SIGTERM)
        return os.kill(known["pid"], getattr(signal, "SIG" + arguments[3]))
    sys.exit(__doc__)


if __name__ == "__main__":
    main()
