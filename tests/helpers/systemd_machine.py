"""A container whose first process is systemd, with its own network, processes and files.

It cannot reach the real machine: its root is an empty file system in memory, where programs and
libraries are mounted read-only, and the only units are those of the test. So no unit of the
distribution, which could clean up or mount something, can ever start.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import tools
from support import DEADLINE, Child, eventually

# The targets that services and sockets depend on. The distribution's targets would start its
# services.
TARGETS = ("basic", "sysinit", "sockets", "shutdown", "local-fs", "multi-user")

# Joins its own control group, which it removes at the end.
OUTER = """
mount -t tmpfs tmpfs "$folder/root"
mkdir "$folder/root/groups"
mount -t cgroup2 cgroup2 "$folder/root/groups"
parent="$folder/root/groups$(sed -n 's/^0:://p' /proc/self/cgroup)"
mkdir "$parent/tomada-$$"
echo $$ > "$parent/tomada-$$/cgroup.procs"
unshare --mount --pid --fork --kill-child --uts --ipc --cgroup sh -euc "$inner" || true
echo $$ > "$parent/cgroup.procs"
find "$parent/tomada-$$" -depth -type d -exec rmdir {} +
"""

INNER = """
read -r pid rest < /proc/self/stat  # as others see it
new="$folder/root/new"
mkdir "$new"
mount -t tmpfs tmpfs "$new"
cd "$new"
show() {
    [ -e ".$2" ] || mkdir -p ".$2"
    mount --bind "$1" ".$2"
    mount -o remount,bind,ro ".$2"
}
for path in /usr /bin /sbin /lib /lib64; do
    if [ -L $path ]; then cp -P $path .; elif [ -d $path ]; then show $path $path; fi
done
for path in $shown; do show "$path" "$path"; done
show "$folder/units" /units
show "$folder/shout" /opt/shout
mkdir -p dev etc old proc run sys tmp var/tmp
chmod 1777 tmp var/tmp
cp /etc/passwd /etc/group /etc/ld.so.cache etc
touch etc/machine-id
mount -t tmpfs -o mode=755 tmpfs dev
for device in null:3 zero:5 full:7 random:8 urandom:9; do
    mknod -m 666 dev/${device%:*} c 1 ${device#*:}
done
mount -t proc proc proc
for path in /proc/sys /proc/sysrq-trigger; do
    [ -e .$path ] && show .$path $path
done
mount -t sysfs sysfs sys
mount -o remount,bind,ro sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
pivot_root . old
cd /
umount -l old
rmdir old
echo $pid
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_UNIT_PATH=/units \
    SYSTEMD_GENERATOR_PATH=/none SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/none \
    /lib/systemd/systemd --system --unit=basic.target --show-status=no --log-target=null
"""


def shown():
    """Return the folders of this interpreter and its packages, outermost first."""
    found = {Path(path).resolve() for path in (sys.base_prefix, sys.prefix, *sys.path) if path}
    found |= {Path(sys.prefix)}
    covered = {Path("/usr")}
    for path in sorted(filter(Path.is_dir, found)):
        if covered.isdisjoint({path, *path.parents}):
            covered.add(path)
            yield path


class Machine:
    """Starts the machine in a network namespace.

    :param folder: Contains ``units`` and ``shout``, which the machine sees as ``/units`` and
        ``/opt/shout``.
    """

    def __init__(self, network, folder):
        self._network = network
        self.shout, self.units = folder / "shout", folder / "units"
        for path in (self.shout, self.units, folder / "root"):
            path.mkdir()
        for name in TARGETS:
            (self.units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        environment = {"folder": folder, "inner": INNER, "shown": "\n".join(map(str, shown()))}
        with contextlib.ExitStack() as stack:
            self._child = network.run(
                lambda: Child(
                    *("--mount", "sh", "-euc", OUTER),
                    program=tools.find("unshare"),
                    env=os.environ | {name: str(value) for name, value in environment.items()},
                )
            )
            stack.enter_context(self._child)
            self._pid = int(self._child.line())
            stack.callback(self._end)
            eventually(lambda: self._ask("systemctl", "is-active", "basic.target").returncode == 0)
            self._stack = stack.pop_all()

    def _ask(self, *command):
        within = (tools.find("nsenter"), "--target", str(self._pid), "--all")
        return subprocess.run(
            [*within, *map(str, command)],
            capture_output=True,
            text=True,
            timeout=2 * DEADLINE,
            check=False,
        )

    def command(self, *command):
        """Run a program on the machine, and return its output."""
        done = self._ask(*command)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def show(self, unit, name):
        """Return a property of a unit."""
        return self.command("systemctl", "show", "--value", "--property", name, unit).strip()

    def run(self, function, *arguments):
        """Call a function in the machine's network."""
        return self._network.run(function, *arguments)

    def _end(self):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        status, _, errors = self._child.end()
        assert status == 0, errors

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()
