"""What the core says, for readers of Chinese.

It says it in English sentences, which may come from other processes, too. Those of warnings and notes are few and are
put into Chinese whole, figures and names kept. Errors are many: one is known by the words that its kind shares, and a
sentence on what it means and what to do goes before the core's own, which has the details.
"""

from __future__ import annotations

import re

_KINDS = (
    (r"not enough memory|out of memory", "内存或显存不足：请选择更小的尺寸或更少的帧数。"),
    (r"^The workers? .*could not be started", "工作进程未能启动：请按下文处理后再试。"),
    (r"^The worker of rank|^The connection between the workers", "执行任务的工作进程中断：它会自动重启，请再试一次。"),
    (r"^(No|The|A) pool of workers", "工作池没有运行或已停止：请在终端用 pab workers start 重新启动。"),
    (r"could not be kept|^The disk that keeps", "文件未能保存，磁盘可能已满：请删除历史中的视频，或腾出空间后再试。"),
    (
        r"is not downloaded|comes without a|is incomplete|no file or folder|no folder '|There is no model|no longer "
        r"here|not here any more|The weights in|carries no trained weights",
        "模型或文件缺失、不完整或已被移走：请按下文重新获取，或改选其他模型或文件。",
    ),
    (r"^The queue is full", "队列已满：请稍后再试。"),
    (r"of your videos are still", "您已有多个视频正在生成或等待：请等其中一个完成，或将其取消。"),
    (r"is being measured already", "该模型正在测量：完成后图表会显示在这里。"),
    (r"^Both sides have the same settings", "左右两侧的设置相同：请为其中一侧改选策略。"),
    (r"^There is no such job", "没有这个任务：它属于其他用户，或提交于工作室重启之前。"),
    (r"^There is no such video", "历史中没有这个视频：可能已被删除。"),
    (r"^The history could not", "历史记录无法读写：如果磁盘已满，请腾出空间后再试。"),
    (r"^Something in the program failed", "程序内部出错：详情见工作室的日志，其他任务不受影响。"),
)
_OTHERWISE = "未能完成，原因如下："
REMARK = "说明（英文）："  # before a warning or note that is not known here

_SENTENCES = (
    # a video's warnings: its prompt and size
    (
        r"^The prompt is longer than the model reads \((\d+) tokens\): it was cut before '(.*)'\.$",
        r"提示词超出模型可读的长度（\1 个词元）：从“\2”起被截去。",
    ),
    (
        r"^.* was trained for (\d+) frames? of (\d+x\d+) pixels; (\d+) frames? of (\d+x\d+) may look worse\.$",
        r"该模型以 \2 像素、\1 帧训练；\4 像素、\3 帧的效果可能较差。",
    ),
    (
        r"^.* was trained on videos from 144p to 720p, one side up to 8/3 of the other; (\d+x\d+) pixels are beyond "
        r"that and may look worse\.$",
        r"该模型以 144p 至 720p、长边不超过短边 8/3 的视频训练；\1 像素超出此范围，效果可能较差。",
    ),
    (
        r"^At (\d+x\d+) pixels .* was trained on clips of up to (\d+) frames; (\d+) may look worse\. Chain clips of "
        r"\d+ frames instead, or take a smaller size\.$",
        r"在 \1 像素下，该模型以不超过 \2 帧的视频训练；\3 帧的效果可能较差：请减少帧数，或选择更小的尺寸。",
    ),
    (
        r"^.* was trained on single images and on clips of (\d+) frames and more; (\d+) may look worse\.$",
        r"该模型以单张图片及不少于 \1 帧的视频训练；\2 帧的效果可能较差。",
    ),
    # how fast a model can be run here
    (r"Fused operations need a CUDA GPU\. ?", "融合算子需要 CUDA GPU。"),
    (r"Fused operations need Triton, [^.]*\. ?", "融合算子需要 Triton，而当前的 PyTorch 不含它。"),
    (r"Fused operations need PyTorch 2\.6 or newer, not (\S+)\. ?", r"融合算子需要 PyTorch 2.6 或更新版本，而非 \1。"),
    (r"^(.*) is too old for fused operations: [^.]*\. ?", r"\1 过旧，不支持融合算子：需要 Ampere 或更新的 GPU。"),
    (
        r"^Triton cannot make kernels on this machine \((.*)\): it needs a C compiler such as gcc\. ?",
        r"Triton 无法在本机编译内核（\1）：需要 gcc 等 C 编译器。",
    ),
    (
        r"Faster runs on a CPU need [^.]*\. ?",
        "CPU 上的加速需要支持 bfloat16 乘法的处理器（AVX-512 BF16 或 AMX）。",
    ),
    (
        r"Arithmetic in eight bits needs an NVIDIA GPU; [^.]*\. ?",
        "八位运算需要 NVIDIA GPU；仅以八位保存权重则任何设备都可以。",
    ),
    (r"^(.*) has no arithmetic in eight bits: [^.]*\. ?", r"\1 不支持八位运算：需要 Ada 或 Hopper 及更新的 GPU。"),
    (r"Arithmetic in eight bits goes with bfloat16: [^.]*\. ?", "八位运算须与 bfloat16 配合：请以该精度加载模型。"),
    (r"The model runs as it is, which is slower\.", "模型将以原有方式运行，速度较慢。"),
    (r"It runs without that\.", "将不使用它而运行。"),
    # several devices
    (
        r"^The devices differ \((.*)\): the smallest decides what fits, and the slowest how fast\.$",
        r"各设备不同（\1）：能生成多大取决于最小的设备，速度取决于最慢的设备。",
    ),
    (
        r"^This torch cannot connect the devices with each other .* every video is made on (\S+) alone\.$",
        r"当前的 torch 无法连接各设备（GPU 之间需要 NCCL，Windows 没有）：所有视频仅由 \1 生成。",
    ),
    (
        r"This clip is made by (\d+) of the (\d+) devices; more would not make it faster\.",
        r"该视频由 \2 台设备中的 \1 台生成：更多设备不会更快。",
    ),
    (
        r"(\d+) devices would be no faster than one for this clip \(.*\); one makes it\.",
        r"对该视频，\1 台设备不会比一台更快：由一台生成。",
    ),
    (
        r"(\d+) devices are no faster than one for this clip \(.*\): one makes it\. Use the devices for several videos "
        r"side by side\.",
        r"经测定，对该视频 \1 台设备并不比一台更快：由一台生成。可让各设备同时生成不同的视频。",
    ),
    (
        r"The worker of (rank \d+ \(\S+\)) [^.]*; the job is lost\. The pool starts it anew: try again\. ",
        r"\1 的工作进程中断。",
    ),
    (r"It was made again, on (\d+) of the devices that were left\. ?", r"该视频已用剩下的 \1 台设备重新生成。"),
    # the notes of calibrated schedules, in parts
    (r"(\d+) of (\d+) calls computed(?:; )?", r"模型的 \2 次调用中计算 \1 次；"),
    (r"searched by model(?: in groups of \d+)? on (\d+) clips", r"用 \1 个视频、按整个模型搜索得到"),
    (r"searched by kind(?: in groups of \d+)? on (\d+) clips", r"用 \1 个视频、按类别搜索得到"),
    (r"searched by block(?: in groups of \d+)? on (\d+) clips", r"用 \1 个视频、按块搜索得到"),
    (r"searched on (\d+) clips for (\S+) less arithmetic", r"用 \1 个视频搜索得到，计算量减少 \2"),
    (r"proposed from the changes of (\d+) clips", r"由 \1 个视频中各步的变化得出"),
    (r", costs measured: ([\d.]+) of the time, error (\S+?)(?=,|$)", r"；实测用时为原来的 \1 倍，误差 \2"),
    (r", costs ([^:]+): ([\d.]+) of the time, error (\S+?)(?=,|$)", r"；用时为原来的 \2 倍（按 \1 估算），误差 \3"),
    (r"; error of their latents (\S+?)(?=,|$)", r"；误差 \1"),
    (r", (\S+)'s (\S+?)(?=,|$)", r"（\1 的误差为 \2）"),
    (
        r"found on the demo model of the same family, (\d+) blocks deep, and carried over: no weights of this model "
        r"were at hand, so how near its videos stay was not measured",
        r"在同系列、\1 层的演示模型上搜索得到，再移用于此：当时没有该模型的权重，其视频与原视频有多接近尚未测量",
    ),
)


def explained(said: str, language: str, otherwise: str = _OTHERWISE) -> str:
    """The core's words as they are; for readers of Chinese in Chinese where they are known, else after a sentence in
    theirs: that of the error's kind, or `otherwise`."""
    if language != "zh" or not said:
        return said
    told = unknown = said
    for sentence, words in _SENTENCES:
        told, unknown = re.sub(sentence, words, told), re.sub(sentence, "", unknown)
    if not unknown.strip():
        return told
    meaning = next((words for signs, words in _KINDS if re.search(signs, said)), otherwise)
    return f"{meaning} {told}"
