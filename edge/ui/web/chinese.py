"""What the program says in sentences, in Chinese: errors with their way out, and remarks. Pure.

The sentences are made in English all over the program, and kept so in conversations; they are told in Chinese where
they are shown. One that is not known here stands in English within a Chinese frame. `{}` is what changes from case to
case; `|` stands where the program puts a sentence together from two pieces.
"""

from __future__ import annotations

import re
from functools import lru_cache

FRAME = "程序报告（英文）：{}"
SENTENCES: dict[str, str] = {
    # a conversation
    "this conversation is being answered already": "此对话正在回答中",
    "this conversation is being answered": "此对话正在回答中",
    "Wait for the answer, or stop it": "请等待回答完成，或将其停止",
    "this conversation was changed in another tab": "此对话已在另一个标签页中更改",
    "It is shown as it is now; do it again": "现显示最新内容，请重试",
    "there is no conversation {} any more": "对话 {0} 已不存在",
    "Choose another, or begin a new one": "请选择其他对话，或新建一个",
    "turn {} is not in this conversation": "此对话中没有第 {0} 轮",
    "Reload the page: it shows an old state": "请刷新页面：当前显示的内容已过时",
    "{} is no action": "没有 {0} 这个操作",
    "Reload the page: it is of another version": "请刷新页面：它属于另一个版本",
    "{} cannot be deleted ({})": "无法删除 {0}（{1}）",
    "Close programs that have it open": "请关闭正在使用它的程序",
    "{} cannot be written ({})": "无法写入 {0}（{1}）",
    "Mend its permissions, or name another folder with {}": "请检查其权限，或用 {0} 指定其他文件夹",
    "{} is held by another program": "{0} 正被另一个程序占用",
    "End the other glm4-edge that hangs": "请结束另一个没有响应的 glm4-edge",
    "A conversation could not be read ({}). It was put aside, whole, as {}":
        "有一个对话无法读取（{0}），已原样另存为 {1}",
    "{} {} cannot be": "{0} 不能是 {1}",
    "Name a number up to {}": "请填写不大于 {0} 的数",
    "Name a number from {} on": "请填写不小于 {0} 的数",
    "Name a number above {}": "请填写大于 {0} 的数",
    # an answer
    "The answer was ended: it called tools {} times in a row": "回答已终止：连续调用工具 {0} 次",
    "The conversation has outgrown the context of {} tokens: its oldest |turn is| no longer read":
        "对话已超出 {0} 个词元的上下文：最早的一轮不再读取",
    "The conversation has outgrown the context of {} tokens: its oldest |{} turns are| no longer read":
        "对话已超出 {0} 个词元的上下文：最早的 {1} 轮不再读取",
    "the message has {}, the chat template's and the system prompt's included, and the context of {} has room for {}":
        "这条消息连同模板和系统提示词共 {0}，而 {1} 个词元的上下文只容得下 {2} 个",
    "the conversation has {} tokens, and {} are left for it of a context of {}":
        "对话有 {0} 个词元，而 {2} 个词元的上下文只给它留下 {1} 个",
    "the conversation has {}, and a context of {} has room for {} and one of the answer":
        "对话有 {0}，而 {1} 个词元的上下文只容得下 {2} 个和回答的一个",
    "Make the message shorter, or load the model with a longer context": "请缩短消息，或以更长的上下文加载模型",
    "The files are longer than the context. Left out: {}": "文件超出上下文。未读取：{0}",
    "Ask a shorter question, about fewer files, or load the model with a longer context":
        "请缩短问题、减少文件，或以更长的上下文加载模型",
    "This should not have happened ({}). Please report it": "出现了意外错误（{0}）。请报告此问题",
    "This should not have happened ({})": "出现了意外错误（{0}）",
    # the model and its device
    "no model is loaded yet": "尚未加载模型",
    "Choose one first, or wait until it is loaded": "请先选择模型，或等待加载完成",
    "the model has been closed": "模型已关闭",
    "the process that runs the model| on {} |was killed, most likely for want of memory":
        "在 {0} 上运行模型的进程被终止，很可能是内存不足",
    "the process that runs the model| on {} |ended in {}": "在 {0} 上运行模型的进程崩溃（{1}）",
    "loading the model| on {} |was killed, most likely for want of memory":
        "在 {0} 上加载模型时进程被终止，很可能是内存不足",
    "loading the model| on {} |ended in {}": "在 {0} 上加载模型时进程崩溃（{1}）",
    "Close other programs if memory is short, or update the device's driver, or choose another device":
        "若内存不足请关闭其他程序，或更新设备驱动，或选择其他设备",
    "Update the device's driver, or choose another device": "请更新设备驱动，或选择其他设备",
    "It goes on on {}": "改在 {0} 上继续",
    "From the beginning, on {}:": "在 {0} 上重新开始：",
    "{} was checked and computes right. From the beginning:": "{0} 经检查计算无误。重新开始：",
    "no device here can run {}: {}": "这台电脑上没有设备能运行 {0}：{1}",
    "No other device is here": "没有其他可用设备",
    "{} was asked for": "按要求使用 {0}",
    "The first of {} that runs this model and computes right": "{0} 中第一个能运行此模型且计算无误的设备",
    "there is no folder {}": "没有文件夹 {0}",
    "{} is no exported model and no checkpoint": "{0} 既不是已导出的模型，也不是检查点",
    "Name a folder that `glm4-edge export` made, a checkpoint's folder, a repository such as "
    "zai-org/glm-4-9b-chat-hf, or 'pocket'":
        "请填写 `glm4-edge export` 生成的文件夹、检查点文件夹、仓库名（如 zai-org/glm-4-9b-chat-hf）或 pocket",
    "{} is damaged: {} is missing or does not have its {} bytes": "{0} 已损坏：{1} 缺失或大小不是 {2} 字节",
    "{} is damaged: {} is not what the export wrote": "{0} 已损坏：{1} 与导出时不同",
    "Export the model again": "请重新导出模型",
    "{} holds no exported model: it has no {}": "{0} 中没有已导出的模型：缺少 {1}",
    "Make one with: glm4-edge export MODEL OUT": "可用 glm4-edge export MODEL OUT 生成",
    "Nothing was chosen. Write a folder or a name": "尚未选择。请填写文件夹或名称",
    "the export ended in an unforeseen way (code {})": "导出意外结束（代码 {0}）",
    "In a terminal, glm4-edge export {} says more": "在终端运行 glm4-edge export {0} 可了解更多",
    "{} → {}: |this machine has no {} that OpenVINO can use; it has {}":
        "{0} → {1}：这台电脑没有 OpenVINO 可用的 {2}，有 {3}",
    # files
    "This file was not uploaded. Drop it again": "此文件未上传。请重新拖放",
    "a file of this question is no longer there": "此问题的一个文件已不存在",
    "Drop it again": "请重新拖放",
    "{} is empty": "{0} 是空文件",
    "there is no text in {}": "{0} 中没有文字",
    "Name a file with something in it": "请选择有内容的文件",
    "{} is damaged ({})": "{0} 已损坏（{1}）",
    "{} is no {} file, or a damaged one": "{0} 不是 {1} 文件，或已损坏",
    "Get it again, or save it anew": "请重新获取或另存一次",
    "{} is no text (it is binary)": "{0} 不是文本（它是二进制文件）",
    "What is read: pdf, docx, pptx and text in UTF-8, UTF-16 or GB 18030":
        "可读取：pdf、docx、pptx，以及 UTF-8、UTF-16 或 GB 18030 文本",
    "{} has no text, only {} of pictures: it seems to be scanned": "{0} 没有文字，只有 {1} 图片：似乎是扫描件",
    "Let a program for text recognition (OCR) put the text into it first": "请先用文字识别（OCR）程序加入文字",
    "{} is protected by a password": "{0} 有密码保护",
    "Save it without one first": "请先去掉密码再保存",
    "{} is too large: {}, and {} are read": "{0} 太大：{1}，最多读取 {2}",
    "Cut out the part you ask about": "请只截取要提问的部分",
}  # fmt: skip


@lru_cache(maxsize=256)  # the page asks for the same ones again and again
def told(english: str) -> str:
    """The sentences in Chinese, one after the other; framed, as they are, where the first is not known."""
    rest, said = english.strip(), ""
    while rest:
        for pattern, chinese in _patterns():
            found = pattern.match(rest)
            if found is not None:
                sentence = chinese.format(*(_TOKENS.sub(r"\1 个词元", each) for each in found.groups()))
                said += sentence if sentence.endswith("：") else f"{sentence}。"
                rest = rest[found.end() :]
                break
        else:
            return said + rest if said else FRAME.format(rest)
    return said


_TOKENS = re.compile(r"([\d,]+) tokens?\b")


@lru_cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    """The longest first; what changes may be anything, but a sentence ends with a full stop or the text."""
    made = []
    for english, chinese in sorted(SENTENCES.items(), key=lambda each: len(each[0]), reverse=True):
        escaped = "(.+?)".join(re.escape(part) for part in english.replace("|", "").split("{}"))
        first = re.compile(r"^[a-zA-Z]").sub(lambda letter: f"[{letter[0].lower()}{letter[0].upper()}]", escaped)
        end = r"\s*" if english.endswith(":") else r"(?:\.\s+|\.?\Z)"
        made.append((re.compile(first + end, re.S), chinese))
    return made
