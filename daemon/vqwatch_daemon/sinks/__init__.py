"""Where people already look: Weights & Biases, TensorBoard, MLflow and JSON lines, written by the daemon.

    sinks = Sinks.of(settings)      # an observer of the hub, with one outlet for each sink asked for
    hub.observers.append(sinks)
    sinks.close(10.0)

Each sink works in a process of its own, behind its own bounded queue and its own thread: wandb blocks its caller for as
long as its service is frozen and hangs interpreters at exit, and a process is what can be given up safely.
"""

from vqwatch_daemon.sinks.fan import Sinks, missing_library

__all__ = ["Sinks", "missing_library"]
