"""Where people train: callbacks for Lightning and for Hugging Face's Trainer, and the recipe for plain loops.

Lightning::

    from vqwatch.integrations.lightning import VqwatchCallback

    Trainer(callbacks=[VqwatchCallback(run="rqvae")]).fit(model, loader)

Hugging Face's Trainer::

    from vqwatch.integrations.transformers import VqwatchCallback

    Trainer(model, args, train_dataset=data, callbacks=[VqwatchCallback(run="rqvae")]).train()

Accelerate, or any loop of one's own over several processes::

    from vqwatch.integrations import stop_together

    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    watch = vqwatch.attach(
        model, optimizer, run="rqvae", rank=accelerator.process_index, world_size=accelerator.num_processes
    )
    step = 0
    for batch in loader:
        with accelerator.accumulate(model):
            output = model(batch)
            accelerator.backward(output.loss)
            optimizer.step()
            if accelerator.sync_gradients:
                step += 1
                watch.step(step, losses={"total": output.loss})
            optimizer.zero_grad()
        if accelerator.sync_gradients and stop_together(watch, step):
            break
    watch.close()

What the model returns, if it is a mapping or has fields, is told by name: one-element tensors are losses ("loss" is
"total"), and ``codes``, ``original``, ``reconstructed`` and ``mask`` are what :meth:`vqwatch.Emitter.step` calls so.
"""

from .common import stop_together

__all__ = ["stop_together"]
