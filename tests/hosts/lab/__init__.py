"""The host lab: worker hosts with real cgroup v2 and a Docker engine of their own, on any Debian machine, as root.

A *guest* is a User Mode Linux kernel: an ordinary process that is a whole Linux host. It boots in four seconds, its
Docker engine answers after about ten, and its containers have a kernel with cgroup v2 (`cpu io memory pids`; no cpuset,
no pressure files). It can lose power, be cut off the network and boot again. `make test-hosts` runs the tests of this
folder; the first time it builds what guests boot from (two minutes, 0.9 GB below `~/.cache/fastflow/hostlab`, or
wherever `FASTFLOW_HOSTLAB` says), later it starts in seconds. A change of the project's code costs one wheel, since
the project lies in a layer of its own.

Where things are
----------------
    scope.py          namespaces whose end is the end of all that was started in them; why nothing ever stays behind
    cache.py          what is built once, by the hash of what went into it
    prerequisites.py  Debian packages of this machine that the lab needs and installs
    image.py          a guest's root (Debian, dependencies, project) and its Docker data with the runner image
    registers.c       lets a guest's kernel run on processors that are newer than it
    network.py        the lab's bridges and taps: 10.77.0.1 is the control plane, guests are 10.77.0.11 and on
    init.py           a guest's first process: a quick script, or systemd with the agent as its delivered unit
    guest.py          one guest: boot, run a command, read a log, cut its power or its network
    lab.py            one network with its guests
    cluster.py        Fast-Flow on it: a control plane in the lab's network, an agent on each host
    inside/           what runs in a guest: its first process, the command server, start of the agent

Writing a product test
----------------------
`cluster` is a control plane started in the lab's network; `host_agent` is one host whose agent is active. Both live for
the whole session, since a boot costs more than a test: each test has pipelines of its own, and `host_agent` is on,
connected and without runs when it begins, whatever the test before it left. `cluster` has all that
`tests.cluster.Cluster` has (`add_pipeline`, `ffctl`, `run`, `show`, `log`, `finish`, `controlplane.kill()` ...)::

    def test_a_power_cut_ends_the_run_with_host_reboot(cluster: HostCluster, host_agent: HostAgent) -> None:
        cluster.add_pipeline("sleeper", "import time; print('begun', flush=True); time.sleep(600)")
        run = cluster.run("sleeper")
        cluster.wait_for_log(run, b"begun")
        host_agent.power_cut()
        host_agent.boot()
        assert cluster.finish(run, timeout=120)["reason"] == "REASON_HOST_REBOOT"

`host_agent` (`HostAgent`)
    name                          of the agent and of its host
    run("cat /sys/fs/cgroup/..")  a shell command on the host, as root; works during a partition too
    log()                         the agent's log, over all its starts; also when the host is off
    power_cut(), boot()           pull the plug, and start again with the disks as they were
    power_off()                   an orderly shutdown: SIGTERM to the agent, engine stopped, disks unmounted
    stop_agent(), kill_agent(), start_agent()     the agent alone; its containers live on
    partition(), heal()           every packet to and from the control plane vanishes, until healed
    guest                         the host itself: `console()`, `read(path)`, `wait_for_docker()`, `link.lab_address`

Settings: `cluster.add_host("worker-2", FASTFLOW_SLOTS="1")` makes one more host with an agent (`boot()` it), with
`SYSTEMD` of `init.py` as second argument one like most real hosts (half a minute more; `run("systemctl …")` there);
`HostCluster(lab, folder, FASTFLOW_LOST_AFTER="5")` is a control plane of a test's own, as a context manager. Several
hosts boot at once with `guest.power_on()` for each before `guest.wait_until_up()` for each. A test that needs only a
host takes the fixture `lab` and calls `lab.add_guest(name)`; names are unique in a lab, and so in a test session.

What to know
------------
- A guest has one processor, 2 GB of memory and two disks of 8 GB that outlive its power: `/var/lib/docker` and
  `/var/lib/fastflow`. The rest of its root is a folder of this machine; `/run` and `/tmp` are in its memory.
- Go programs are slow in a guest: `docker run` takes four to nine seconds, so a few containers per test.
- Guests reach nothing but the lab. Agents have `FASTFLOW_NETWORK=none`; a pipeline with requirements needs an index
  served at 10.77.0.1, which `lab.scope.start` can start there.
- Wrong clocks: `host_agent.run("date --set '1 hour ago'")`. A stopped engine: `host_agent.run("kill $(cat
  /run/docker.pid)")`. A full disk: `fallocate` on `/var/lib/fastflow`.
- A command of `run` has ended when its output is closed too: a process that is to stay needs `>/dev/null 2>&1`.
- All waits are bounded. A `LabError` shows the end of the guest's console; a failed test shows the ends of the logs of
  agent, engine, console and control plane of the fixtures it used.
- While a test waits in a debugger, `nsenter --all --target PID` (PID of `linux.uml`) is a shell in the lab's network.
- The runner image is taken from this machine's engine: the agent's default, or `FASTFLOW_HOSTLAB_IMAGE`.
"""
