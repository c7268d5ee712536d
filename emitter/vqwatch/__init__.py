"""vqwatch: the part of the sidecar that a training script imports.

::

    import vqwatch

    watch = vqwatch.attach(model, optimizer)
    for step, (features, mask) in enumerate(loader):
        ...
        watch.step(step, losses={"total": total}, codes=codes, original=features, reconstructed=out, mask=mask)
        if watch.stop_requested:
            break
    watch.close()

Importing it loads no torch. Logs under the name ``vqwatch``.
"""

from .attaching import attach
from .emitter import Emitter

__all__ = ["Emitter", "attach"]
