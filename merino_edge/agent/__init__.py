"""The device-side program: Python 3.8 syntax, standard library only, nothing of ours imported.

It is pushed as one zipapp and talks frames over stdin and stdout. In the order of the data:

    frames.py      what goes over the wire
    errors.py      the one error that goes over it
    server.py      threads, heartbeat, dispatch of requests
    machine.py     a view of the machine's files and tools, or of a recorded tree
    facts.py       what this machine is, read from /proc and /sys
    sensors.py     power, throttling, what kind of machine; and why where it cannot tell
    bandwidth.py   how fast it reads its memory
    store.py       objects by digest, the lock, the layout of the folder
    synthetic.py   weights made here from a seed, for measurements
    releases.py    journalled installation, switch, rollback, collection
    runtimes.py    private folders of unzipped wheels, each checked before use
    children.py    the measuring child, seen from the agent
    worker.py      the measuring child itself: numpy and the runtime live here alone
    session.py     one interface that hides the runtimes
    session_onnx.py    onnxruntime behind it
    session_tflite.py  ai-edge-litert or tflite-runtime behind it
    runtime_check.py   whether a runtime computes rightly on this CPU
    opening.py     from a bundle to a session
    large_pages.py     weights in large pages, where the kernel can
    watch.py       what is watched while a model runs: heat, what comes and goes, power
    measure.py     the timing code, the only copy
    conditions.py  temperature, clocks, load, throttling, and whether a measurement counts
    sampling.py    from logits to the next token
    text.py        from token ids to text
    run.py         what each release carries: finds this program, and lets it generate with no host
    run_command.py its command line
    standalone.py  text from the deployed model with no host
    line_server.py the same on a UNIX socket, and the systemd unit that starts it
"""

PROTOCOL = 1
