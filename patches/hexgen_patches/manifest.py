"""Every hook into SGLang, and every other thing in SGLang that hooks and platform rely on.

The single list: to add a hook, write a module for the hooked class in this package and a row
here. Nothing is imported from SGLang.
"""

from __future__ import annotations

from hexgen_patches.declarations import AnyOf, Fact, Hook, Names, Need, Signature, Text

_SRT = "sglang.srt"
_SERVER_ARGS = f"{_SRT}.server_args.ServerArgs"
_SCHEDULER = f"{_SRT}.managers.scheduler.Scheduler"
_WORKER = f"{_SRT}.managers.tp_worker.TpModelWorker"
_PARTS = f"{_SRT}.managers.scheduler_components"
_RECEIVER = f"{_PARTS}.request_receiver.SchedulerRequestReceiver"
_BATCH_RESULTS = f"{_PARTS}.batch_result_processor.SchedulerBatchResultProcessor"
_LOADS = f"{_PARTS}.load_inquirer.SchedulerLoadInquirer"
_RESULT = f"{_SRT}.managers.utils.GenerationBatchResult"
_POLICY = f"{_SRT}.managers.schedule_policy.SchedulePolicy"
_TOKENIZER = f"{_SRT}.managers.tokenizer_manager.TokenizerManager"
_IO = f"{_SRT}.managers.io_struct"
_REQ = f"{_SRT}.managers.schedule_batch.Req"
_PLATFORMS = f"{_SRT}.platforms"
_ATTENTION = f"{_SRT}.layers.attention"
_KERNELS = "sglang.kernels.ops.attention"
_TORCH_ATTENTION = f"{_ATTENTION}.torch_native_backend.TorchNativeAttnBackend"
_TRITON_ATTENTION = f"{_ATTENTION}.triton_backend.TritonAttnBackend"
_FORWARD_BATCH = f"{_SRT}.model_executor.forward_batch_info.ForwardBatch"
_GRAPHS = f"{_SRT}.model_executor.runner.decode_cuda_graph_runner"

_ORDERING_OR_LINK = frozenset({Need.ORDERING, Need.LINK})

HOOKS: tuple[Hook, ...] = (
    Hook(
        target=f"{_SERVER_ARGS}.add_cli_args",
        kind="AFTER",
        ours="hexgen_patches.server_args:add_flags",
        parameters=("parser",),
        needs=frozenset({Need.ALWAYS}),
        why="--hexgen-* flags, and hexgen among the choices of --schedule-policy",
        remove_when="plugins can declare flags",
    ),
    Hook(
        target=f"{_SERVER_ARGS}.from_cli_args",
        kind="BEFORE",
        ours="hexgen_patches.server_args:prepare_launch",
        parameters=("cls", "args"),
        needs=frozenset({Need.ALWAYS}),
        why="check our flags at launch, export them to child processes, apply the other hooks",
        remove_when="plugins can declare flags and get their values in every process",
    ),
    Hook(
        target=f"{_TOKENIZER}._validate_one_request",
        kind="BEFORE",
        ours="hexgen_patches.tokenizer_manager:check_tag",
        parameters=("self", "obj", "input_ids"),
        needs=_ORDERING_OR_LINK,
        why="answer a malformed workflow tag with a 400 before it enters the engine",
        remove_when="custom_params can be given a schema",
    ),
    Hook(
        target=f"{_RECEIVER}._pull_raw_reqs",
        kind="AFTER",
        ours="hexgen_patches.request_receiver:received",
        parameters=("self",),
        needs=_ORDERING_OR_LINK,
        why="stamp the instant of arrival once for all ranks; feed commands into SGLang's input",
        remove_when="a request carries one arrival instant for all ranks, and plugins can send "
        "control requests from the scheduler process",
    ),
    Hook(
        target=_POLICY,
        kind="REPLACE",
        ours="hexgen_patches.schedule_policy:HexgenSchedulePolicy",
        parameters=(
            "self",
            "policy",
            "tree_cache",
            "enable_hierarchical_cache",
            "enable_priority_scheduling",
            "schedule_low_priority_values_first",
        ),
        needs=frozenset({Need.ORDERING}),
        why="order the waiting queue by a policy of ours",
        remove_when="schedule policies can be registered by name",
        also_bound_in=(f"{_SRT}.managers.scheduler.SchedulePolicy",),
    ),
    Hook(
        target=f"{_SCHEDULER}.get_new_batch_prefill",
        kind="AROUND",
        ours="hexgen_patches.scheduler:around_prefill",
        parameters=("self", "running_batch"),
        needs=frozenset({Need.ORDERING}),
        why="hold back requests, for a prefix in progress or for decodes, and give them back",
        remove_when="a schedule policy can skip a request",
    ),
    Hook(
        target=f"{_SCHEDULER}.process_input_requests",
        kind="BEFORE",
        ours="hexgen_patches.scheduler:before_input",
        parameters=("self", "recv_reqs"),
        needs=frozenset({Need.LINK}),
        why="apply re-prioritisation and policy settings on every rank in the same step",
        remove_when="plugins can add request types to the scheduler's dispatcher",
    ),
    Hook(
        target=f"{_SCHEDULER}.run_event_loop",
        kind="AROUND",
        ours="hexgen_patches.scheduler:around_event_loop",
        parameters=("self",),
        needs=frozenset({Need.LINK}),
        why="connect when the engine is ready, say goodbye when it stops",
        remove_when="plugins are told of the scheduler's start and end",
    ),
    Hook(
        target=f"{_SCHEDULER}.run_batch",
        kind="BEFORE",
        ours="hexgen_patches.steps:before_batch",
        parameters=("self", "batch", "pp_proxy_tensors"),
        needs=frozenset({Need.LINK}),
        why="see what each step computes, and when it is launched",
        remove_when="SGLang publishes the times of its steps",
    ),
    Hook(
        target=f"{_SCHEDULER}.process_batch_result",
        kind="AFTER",
        ours="hexgen_patches.steps:after_results",
        parameters=("self", "batch", "result"),
        needs=frozenset({Need.LINK}),
        why="see when each step has ended",
        remove_when="SGLang publishes the times of its steps",
    ),
    Hook(
        target=f"{_LOADS}.get_loads",
        kind="AFTER",
        ours="hexgen_patches.load_inquirer:load_known",
        parameters=("self",),
        needs=frozenset({Need.LINK}),
        why="report the load that SGLang has computed anyway",
        remove_when="load publishers can be registered",
    ),
    Hook(
        target=f"{_PARTS}.output_streamer.SchedulerOutputStreamer.stream_output",
        kind="AFTER",
        ours="hexgen_patches.output_streamer:streamed",
        parameters=("self", "reqs", "return_logprob"),
        needs=frozenset({Need.LINK}),
        why="see a request's last output and report its timings",
        remove_when="plugins are told of finished requests",
    ),
    Hook(
        target=f"{_PARTS}.output_sender.SenderWrapper.send_output",
        kind="AFTER",
        ours="hexgen_patches.output_sender:sent",
        parameters=("self", "output", "recv_obj"),
        needs=frozenset({Need.LINK}),
        why="see requests that end before they run (aborted or refused in the queue)",
        remove_when="plugins are told of finished requests",
    ),
    Hook(
        target=f"{_WORKER}.forward_batch_generation",
        kind="AROUND",
        ours="hexgen_patches.tp_worker:forward",
        parameters=("self", "batch", "forward_batch", "pp_proxy_tensors"),
        needs=frozenset({Need.EMULATE}),
        why="pass a step's time instead of running the model",
        remove_when="a platform can bring its own model worker",
    ),
    Hook(
        target=f"{_SCHEDULER}.on_idle",
        kind="AFTER",
        ours="hexgen_patches.emulated_scheduler:after_idle",
        parameters=("self",),
        needs=frozenset({Need.EMULATE}),
        why="tell idle time from time that SGLang's CPU work costs",
        remove_when="a batch says in every version whether idle time came before it",
    ),
    Hook(
        target=f"{_SCHEDULER}.get_internal_state",
        kind="AFTER",
        ours="hexgen_patches.emulated_scheduler:after_internal_state",
        parameters=("self", "recv_req"),
        needs=frozenset({Need.EMULATE}),
        why="show the emulated run's drift and overhead in /server_info",
        remove_when="plugins can add to the internal state",
    ),
    Hook(
        target=f"{_TOKENIZER}._validate_one_request",
        kind="BEFORE",
        ours="hexgen_patches.tokenizer_manager:check_emulated",
        parameters=("self", "obj", "input_ids"),
        needs=frozenset({Need.EMULATE}),
        why="refuse what an emulated model cannot answer",
        remove_when="custom_params can be given a schema",
    ),
    Hook(
        target=f"{_SRT}.entrypoints.engine._set_envs_and_config",
        kind="AFTER",
        ours="hexgen_patches.engine:fork_children",
        parameters=("server_args",),
        needs=frozenset({Need.EMULATE}),
        why="several emulated servers on a small machine: share imported modules, start fast",
        remove_when="SGLang's start method can be configured",
    ),
    Hook(
        target=f"{_FORWARD_BATCH}.init_new",
        kind="AFTER",
        ours="hexgen_patches.forward_batch:made",
        parameters=("cls", "batch", "model_runner"),
        needs=frozenset({Need.PREFIX_GROUPS}),
        why="know on the host which requests the rows of a forward pass belong to",
        remove_when="a ForwardBatch names the requests, and the prefixes that the cache holds",
    ),
)

FACTS: tuple[Fact, ...] = (
    # The plugin is loaded, and the flags come in.
    Fact(Text("sglang.launch_server", "load_plugins()"), "python -m sglang.launch_server"),
    Fact(Text("sglang.cli.serve.serve", "load_plugins()"), "sglang serve"),
    Fact(
        Text(f"{_SRT}.managers.scheduler.run_scheduler_process", "load_plugins()"),
        "the spawned scheduler process has our hooks",
    ),
    Fact(
        Text(f"{_SRT}.server_args.prepare_server_args", "ServerArgs.add_cli_args(parser)"),
        "our flags are added",
    ),
    Fact(
        Text(f"{_SRT}.server_args.prepare_server_args", "ServerArgs.from_cli_args(raw_args)"),
        "our flags are read",
    ),
    Fact(
        AnyOf(
            (
                Names(_SERVER_ARGS, ("schedule_policy",)),
                Names(f"{_SRT}.arg_groups.fields.schedule.Schedule", ("schedule_policy",)),
            )
        ),
        "--schedule-policy",
    ),
    Fact(
        Names(
            f"{_SRT}.plugins.hook_registry.HookRegistry",
            ("_hooks", "_patched", "register", "apply_hooks"),
        ),
        "hooks are registered and verified",
    ),
    Fact(
        Signature(f"{_SRT}.plugins.hook_registry._wrap_fn", ("original_fn", "hook", "hook_type")),
        "the self-check finds our function inside SGLang's wrapper",
    ),
    # The order of the queue.
    Fact(
        Text(
            f"{_SCHEDULER}.init_schedule_policy",
            "SchedulePolicy(self.schedule_policy, self.tree_cache,",
        ),
        "the scheduler makes our policy",
    ),
    Fact(Signature(f"{_POLICY}.calc_priority", ("self", "waiting_queue")), "the queue is ordered"),
    Fact(
        Text(
            f"{_SCHEDULER}._get_new_batch_prefill_raw",
            "self.policy.calc_priority(self.waiting_queue, running_batch",
        ),
        "the queue is ordered before requests are admitted, in this order",
    ),
    Fact(
        Text(f"{_SCHEDULER}._get_new_batch_prefill_raw", "for req in self.waiting_queue:"),
        "requests are admitted in the queue's order",
    ),
    Fact(
        Text(f"{_SRT}.managers.schedule_policy.CacheAgnosticPolicy", "FCFS = 'fcfs'"),
        "the known policy that ours hands to SGLang",
    ),
    Fact(
        Text(f"{_POLICY}.calc_priority", "self.tree_cache.supports_fast_match_prefix()"),
        "prefixes are matched for the load snapshot under fcfs",
    ),
    # What is read from a request.
    Fact(
        Names(
            _REQ,
            (
                "rid",
                "sampling_params",
                "origin_input_ids",
                "output_ids",
                "cached_tokens",
                "time_stats",
                "finished_reason",
                "finished",
            ),
        ),
        "what policies and telemetry read from a request",
    ),
    Fact(
        Names(
            f"{_SRT}.observability.req_time_stats.SchedulerReqTimeStats",
            ("forward_entry_time", "prefill_finished_time"),
        ),
        "timings of a request",
    ),
    Fact(
        Names(f"{_SRT}.sampling.sampling_params.SamplingParams", ("custom_params",)),
        "the tag reaches the scheduler",
    ),
    Fact(
        Names(f"{_SRT}.entrypoints.openai.protocol.ChatCompletionRequest", ("custom_params",)),
        "the tag of a chat completion",
    ),
    Fact(
        Names(f"{_SRT}.entrypoints.openai.protocol.CompletionRequest", ("custom_params",)),
        "the tag of a completion",
    ),
    Fact(Names(f"{_IO}.TokenizedGenerateReqInput", ("sampling_params",)), "stamping the arrival"),
    Fact(Names(f"{_IO}.BatchTokenizedGenerateReqInput", ("batch",)), "stamping a batch"),
    Fact(Names(f"{_IO}.BaseReq", ("rid",)), "ids of requests and of aborts"),
    Fact(Names(f"{_SRT}.managers.schedule_batch", ("FINISH_ABORT",)), "aborted or not"),
    Fact(
        Text(f"{_TOKENIZER}._tokenize_one_request", "self._validate_one_request(obj, input_ids)"),
        "a malformed tag is refused at the HTTP edge",
    ),
    Fact(
        Text(f"{_TOKENIZER}._batch_tokenize_and_process", "self._validate_one_request(obj[i],"),
        "a malformed tag in a batch is refused at the HTTP edge",
    ),
    # Input, commands and cancelling.
    Fact(Text(f"{_RECEIVER}.recv_requests", "self._pull_raw_reqs()"), "arrivals and commands"),
    Fact(Names(_RECEIVER, ("recv_from_tokenizer",)), "which rank receives requests"),
    Fact(
        AnyOf(
            (
                Text(f"{_SCHEDULER}.ingest_requests", "self.process_input_requests(recv_reqs)"),
                Text(f"{_SCHEDULER}.event_loop_normal", "self.process_input_requests(recv_reqs)"),
            )
        ),
        "commands are applied before each step",
    ),
    Fact(
        Text(f"{_SCHEDULER}.init_request_dispatcher", "(AbortReq, self.abort_request)"),
        "cancelling goes through SGLang's own abort",
    ),
    Fact(
        AnyOf(
            (
                Text(f"{_SCHEDULER}.abort_request", "self.send_abort_output("),
                Text(
                    f"{_SCHEDULER}.abort_request",
                    "self.ipc_channels.send_to_tokenizer.send_output(",
                ),
            )
        ),
        "the HTTP side hears of a request aborted in the queue",
    ),
    # Telemetry.
    Fact(
        Text(f"{_SRT}.managers.scheduler.run_scheduler_process", "scheduler.run_event_loop()"),
        "the link begins and ends with the scheduler's loop",
    ),
    Fact(
        Names(
            _SCHEDULER,
            (
                "server_args",
                "schedule_policy",
                "recv_from_tokenizer",
                "running_batch",
                "waiting_queue",
                "load_inquirer",
            ),
        ),
        "what telemetry reads from the scheduler",
    ),
    Fact(
        Text(f"{_SCHEDULER}.init_model_worker", "self.max_total_num_tokens"),
        "KV capacity told to the coordinator",
    ),
    Fact(
        Text(f"{_SCHEDULER}.init_model_worker", "self.max_running_requests"),
        "batch limit told to the coordinator",
    ),
    Fact(
        Names(
            f"{_SRT}.managers.load_snapshot.LoadSnapshot",
            (
                "num_running_reqs",
                "num_waiting_reqs",
                "num_waiting_uncached_tokens",
                "num_used_tokens",
            ),
        ),
        "fields of the load",
    ),
    Fact(
        Text(f"{_SCHEDULER}.publish_load_snapshot", "self.load_inquirer.get_loads()"),
        "SGLang computes its load itself",
    ),
    Fact(
        Text(f"{_SCHEDULER}.on_idle", "self.publish_load_snapshot(force=True)"),
        "an engine that became idle reports it at once",
    ),
    Fact(
        Text(
            f"{_BATCH_RESULTS}.process_batch_result_decode",
            "self.output_streamer.stream_output(batch.reqs, batch.return_logprob",
        ),
        "requests that finish while decoding are seen",
    ),
    Fact(
        Text(
            f"{_BATCH_RESULTS}.process_batch_result_prefill",
            "self.output_streamer.stream_output(batch.reqs, batch.return_logprob",
        ),
        "requests that finish with their first token are seen",
    ),
    # Prefixes kept between stages: marked as used in SGLang's own cache.
    Fact(Names(_SCHEDULER, ("tree_cache",)), "the prefix cache of a scheduler"),
    Fact(
        AnyOf(
            (
                Signature(
                    f"{_SRT}.mem_cache.base_prefix_cache.BasePrefixCache.touch_prefix",
                    ("self", "key"),
                ),
                Signature(
                    f"{_SRT}.mem_cache.unified_radix_cache.UnifiedRadixCache.match_prefix",
                    ("self", "params"),
                ),
            )
        ),
        "a walk that marks a prefix as used",
    ),
    Fact(
        Signature(
            f"{_SRT}.mem_cache.radix_cache.RadixKey",
            ("self", "token_ids", "extra_key", "is_bigram", "limit"),
        ),
        "how the cache names a prompt",
    ),
    Fact(
        Names(
            f"{_IO}.TokenizedGenerateReqInput", ("input_ids", "extra_key", "lora_id", "mm_inputs")
        ),
        "what the cache tells prompts apart by",
    ),
    # Prefixes computed ahead: a request that is copied, and whose output SGLang does not send.
    Fact(
        Names(
            f"{_IO}.TokenizedGenerateReqInput",
            (
                "input_text",
                "stream",
                "sampling_params",
                "time_stats",
                "return_logprob",
                "session_id",
                "bootstrap_room",
                "custom_logit_processor",
            ),
        ),
        "what a request of our own is made of",
    ),
    Fact(
        Text(
            f"{_PARTS}.output_streamer.SchedulerOutputStreamer._stream_output_generation",
            "if req.finished() and req.finished_output:",
        ),
        "nothing is sent of a request whose output counts as sent",
    ),
    Fact(Names(_REQ, ("finished_output", "retraction_count")), "a request's output counts as sent"),
    Fact(Names(_SCHEDULER, ("max_req_input_len",)), "the longest prompt that is taken"),
    Fact(
        AnyOf(
            (
                Names(f"{_SRT}.mem_cache.base_prefix_cache.MatchResult", ("device_prefix_len",)),
                Names(f"{_SRT}.mem_cache.base_prefix_cache.MatchResult", ("device_indices",)),
            )
        ),
        "how much of a prompt is cached",
    ),
    # The emulated accelerator.
    Fact(
        Text(
            f"{_SCHEDULER}.run_batch",
            "batch_result = self.model_worker.forward_batch_generation(batch",
        ),
        "steps go through the hooked method",
    ),
    Fact(
        Names(
            f"{_SRT}.managers.schedule_batch.ScheduleBatch",
            (
                "reqs",
                "forward_mode",
                "extend_lens",
                "prefix_lens",
                "decoding_reqs",
                "seq_lens",
                "seq_lens_cpu",
                "seq_lens_sum",
                "enable_overlap",
            ),
        ),
        "what a step's time is predicted from",
    ),
    Fact(
        Names(
            f"{_SRT}.model_executor.forward_batch_info.ForwardMode",
            ("is_decode", "is_extend", "is_mixed"),
        ),
        "kinds of steps",
    ),
    Fact(
        Signature(f"{_RESULT}.copy_to_cpu", ("self", "return_logprob", "return_hidden_states")),
        "with the overlap schedule the end of a step is handed over here",
    ),
    Fact(
        Names(_RESULT, ("logits_output", "next_token_ids", "copy_done")),
        "what a step gives back",
    ),
    Fact(
        Text(f"{_BATCH_RESULTS}.process_batch_result_decode", "result.copy_done.synchronize()"),
        "SGLang waits for the end of a decode step",
    ),
    Fact(
        Text(f"{_BATCH_RESULTS}.process_batch_result_prefill", "result.copy_done.synchronize()"),
        "SGLang waits for the end of a prefill step",
    ),
    Fact(
        Names(f"{_SRT}.layers.logits_processor.LogitsProcessorOutput", ("next_token_logits",)),
        "what a step gives back",
    ),
    Fact(Text(f"{_SCHEDULER}.event_loop_overlap", "self.on_idle()"), "idle time is seen"),
    Fact(Text(f"{_SCHEDULER}.event_loop_normal", "self.on_idle()"), "idle time is seen"),
    Fact(
        Names(f"{_IO}.GetInternalStateReqOutput", ("internal_state",)),
        "the summary of an emulated run in /server_info",
    ),
    Fact(
        Text(
            f"{_SRT}.entrypoints.engine._set_envs_and_config",
            "mp.set_start_method('spawn', force=True)",
        ),
        "child processes are forked after this says spawn",
    ),
    # The attention backend hexgen_shared_prefix.
    Fact(
        Names(f"{_ATTENTION}.attention_registry", ("ATTENTION_BACKENDS",)),
        "our attention backend is built under a name that SGLang knows",
    ),
    Fact(
        Signature(f"{_TORCH_ATTENTION}.init_forward_metadata", ("self", "forward_batch")),
        "called before each forward pass: the groups of a decode step are found in it",
    ),
    Fact(
        Signature(
            f"{_TORCH_ATTENTION}._run_sdpa_forward_decode",
            (
                "self",
                "query",
                "output",
                "k_cache",
                "v_cache",
                "req_to_token",
                "req_pool_indices",
                "seq_lens",
                "encoder_lens",
                "scaling",
            ),
        ),
        "where one layer's decode attention is computed, after the new KV was written",
    ),
    Fact(
        Text(f"{_TORCH_ATTENTION}.forward_decode", "self._run_sdpa_forward_decode("),
        "one layer's decode attention goes through the method that we override",
    ),
    # The same over Triton.
    Fact(
        Text(f"{_TRITON_ATTENTION}.forward_decode", "self.decode_attention_fwd("),
        "one layer's decode attention goes through the attribute that we replace",
    ),
    Fact(
        Signature(
            f"{_KERNELS}.decode_attention.decode_attention_fwd",
            (
                "q",
                "k_buffer",
                "v_buffer",
                "o",
                "kv_indptr",
                "kv_indices",
                "attn_logits",
                "attn_lse",
                "num_kv_splits",
                "max_kv_splits",
                "sm_scale",
                "k_scale",
                "v_scale",
                "logit_cap",
                "sinks",
                "xai_temperature_len",
                "has_mla",
                "use_pdl",
                "page_size",
                "score_mod",
                "aux_tensors",
            ),
        ),
        "what we compute instead of it; other arguments are not covered",
    ),
    Fact(
        Names(
            _TRITON_ATTENTION,
            (
                "decode_attention_fwd",
                "forward_metadata",
                "num_head",
                "num_kv_head",
                "use_mla",
                "dcp_size",
                "enable_deterministic",
                "token_to_kv_pool",
                "req_to_token_pool",
            ),
        ),
        "which models and layers are covered, and the batch's slots in one array",
    ),
    Fact(
        Signature(
            f"{_TRITON_ATTENTION}.init_forward_metadata_out_graph",
            ("self", "forward_batch", "in_capture"),
        ),
        "called before a graph is captured and before each replay",
    ),
    Fact(
        Text(
            f"{_GRAPHS}.build_replay_fb_view",
            "out_cache_loc=getattr(forward_batch, 'out_cache_loc', None)",
        ),
        "a replay's batch is known again by its array of new slots",
    ),
    Fact(
        Text(f"{_FORWARD_BATCH}.init_new", "rids=[req.rid for req in batch.reqs]"),
        "a copy of a batch is known again by its list of request ids",
    ),
    Fact(
        Names(
            _REQ,
            (
                "origin_input_ids",
                "output_ids",
                "extra_key",
                "session",
                "positional_embed_overrides",
                "retraction_count",
            ),
        ),
        "which tokens the prefix cache holds one copy of",
    ),
    Fact(
        AnyOf(
            (
                Names(f"{_SRT}.managers.schedule_batch.ReqKvInfo", ("cache_protected_len",)),
                Names(_REQ, ("cache_protected_len",)),
            )
        ),
        "how much of a request's KV belongs to the prefix cache",
    ),
    # The torch-CPU platform.
    Fact(Names(f"{_PLATFORMS}.cpu", ("CpuDeviceMixin",)), "torch-CPU platform"),
    Fact(Names(f"{_PLATFORMS}.device_mixin.PlatformEnum", ("OOT",)), "torch-CPU platform"),
    Fact(
        Names(f"{_PLATFORMS}.interface.SRTPlatform", ("get_default_attention_backend",)),
        "torch-CPU platform",
    ),
    Fact(
        AnyOf(
            (
                Names(f"{_PLATFORMS}.interface.SRTPlatform", ("get_kv_pool_cls",)),
                Names(
                    f"{_PLATFORMS}.interface.SRTPlatform",
                    ("get_mha_kv_pool_cls", "get_paged_allocator_cls"),
                ),
            )
        ),
        "torch-CPU platform: who names the KV pool's class",
    ),
)


def hooks_for(needs: frozenset[Need]) -> tuple[Hook, ...]:
    """The hooks that a server with these needs has."""
    return tuple(hook for hook in HOOKS if hook.needs & needs)
