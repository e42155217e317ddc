"""The emulated accelerator: SGLang with everything real but the forward pass.

Instead of running the model, each step waits as long as a profile predicts. Runs inside one
SGLang server; `launch` in its launching process, the rest in its scheduler process.
"""
