// The bar above the conversation, the machine beside it, the files to be asked about, and short messages.
(() => {
  const edge = window.edge, { make, say, icon, icons } = edge;

  edge.toast = (text) => {
    const note = make("div", { class: "edge-toast", role: "alert" }, text,
      make("button", { "aria-label": say("close"), onclick: () => note.remove() }, icon(icons.close)));
    document.body.append(note);
    setTimeout(() => note.remove(), 15000);
  };

  edge.mount_bar = (place) => {
    const toggle = (name, picture, label) => make("button", { class: "toggle", "aria-label": say(label),
      title: say(label), onclick: () => edge.pane(name) }, icon(picture));
    const rail = toggle("rail", icons.list, "show list"), side = toggle("side", icons.side, "show side");
    const title = make("h1", {}), doing = make("div", { class: "doing" });
    place.append(make("header", {}, rail, title, doing, side));
    edge.on(({ machine, entries, host }) => {
      rail.setAttribute("aria-expanded", String(edge.isOpen("rail")));
      side.setAttribute("aria-expanded", String(edge.isOpen("side")));
      const open = (edge.parts.rail.props.value || {}).open;
      const view = document.body.dataset.edgeView;
      const name = view === "compare" ? say("compare") : view === "first" ? "glm4-edge"
        : entries.find((entry) => entry.id === open)?.title || say("untitled");
      edge.draw(title, name, () => [name]);
      document.title = view === "first" ? "glm4-edge" : `${name} · glm4-edge`;
      const speed = machine.doing === "writes" && machine.speed ? `${machine.speed.toFixed(1)} ${say("per second")}` : say(machine.doing || "idle");
      const line = host.stage === "ready" ? `${machine.device} · ${speed}` : "";
      doing.classList.toggle("busy", (machine.doing || "idle") !== "idle");
      edge.draw(doing, line, () => [line]);
    });
  };

  const seconds = (value) => value === null || value === undefined ? "–" : value < 10 ? `${value.toFixed(2)} s` : `${value.toFixed(0)} s`;
  const chart = (session) => {
    const width = 260, height = 84, base = 70, shown = session.slice(-24);
    const most = Math.max(...shown.map((each) => each.ttft || 0), 0.01), fastest = Math.max(...shown.map((each) => each.speed || 0), 0.01);
    const step = width / Math.max(shown.length, 8);
    const bars = shown.map((each, i) => make("rect", { class: "bar", x: i * step + step * 0.2, width: step * 0.6, rx: 2,
      y: base - 60 * (each.ttft || 0) / most, height: Math.max(60 * (each.ttft || 0) / most, 1) },
      make("title", {}, `${seconds(each.ttft)} · ${each.speed ? each.speed.toFixed(1) : "–"} ${say("per second")}`)));
    const points = shown.map((each, i) => [i * step + step / 2, base - 60 * (each.speed || 0) / fastest]);
    return make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": say("latency alt") },
      make("line", { class: "axis", x1: 0, x2: width, y1: base, y2: base }), ...bars,
      make("polyline", { class: "line", points: points.map((point) => point.join(",")).join(" ") }),
      ...points.map(([x, y]) => make("circle", { class: "dot", cx: x, cy: y, r: 2.2 })),
      make("text", { x: 0, y: height - 2 }, `▮ ${say("ttft")} ≤ ${seconds(most)}`),
      make("text", { x: width, y: height - 2, "text-anchor": "end" }, `● ${say("speed")} ≤ ${fastest.toFixed(1)}`));
  };
  edge.mount_panel = (place) => {
    const facts = make("dl", {}), history = make("figure", {});
    place.append(make("section", { "aria-label": say("machine") }, make("h2", {}, say("machine")), facts, history));
    edge.on(({ machine }) => {
      const row = (name, value, share) => [make("dt", {}, say(name)), make("dd", {}, ...[].concat(value).map((each, i) => i ? make("small", {}, each) : each),
        share === undefined ? null : make("span", { class: "share", "aria-hidden": "true" },
          make("span", { style: `width:${Math.min(100, 100 * share).toFixed(1)}%` })))];
      const lines = [];
      if (machine.model) {
        lines.push(["model", machine.model]);
        if (machine.adapters?.length) lines.push(["adapters", machine.adapters.join(", ")]);
        lines.push(["device", machine.device]);
        if (machine.why?.length) lines.push(["why", machine.why.join(" ")]);
        lines.push(["ttft", seconds(machine.ttft)], ["speed", machine.speed ? `${machine.speed.toFixed(1)} ${say("per second")}` : "–"]);
        const used = machine.context_used ?? 0;
        lines.push(["context used", say("of context", used.toLocaleString(), machine.context_length.toLocaleString()), used / machine.context_length]);
      }
      lines.push(["memory", [edge.bytes(machine.memory_bytes), say("memory free", edge.bytes(machine.memory_free_bytes), edge.bytes(machine.memory_total_bytes))],
        1 - machine.memory_free_bytes / machine.memory_total_bytes]);
      edge.draw(facts, JSON.stringify(lines), () => lines.flatMap((line) => row(...line)));
      edge.draw(history, JSON.stringify(machine.session), () => [make("figcaption", {}, say("latency")),
        machine.session.length ? chart(machine.session) : make("p", { class: "none" }, say("no answers"))]);
    });
  };

  edge.mount_chips = (place, part) => {
    const choose = make("input", { type: "file", multiple: true, hidden: true, tabindex: "-1", "aria-label": say("attach"),
      onchange: () => { add([...choose.files]); choose.value = ""; } });
    const button = make("button", { class: "attach", "aria-label": say("attach"), title: say("attach"), onclick: () => choose.click() }, icon(icons.clip));
    const list = make("ul", {});
    place.append(list, button, choose);
    let chips = [];
    const publish = () => {
      part.props.value = chips.filter((chip) => !chip.error);  // one without a key is still being read
      edge.draw(list, JSON.stringify(chips), () => chips.map((chip) => make("li", { class: chip.error ? "bad" : "" },
        make("span", {}, chip.name),
        make("small", { role: "status" }, chip.error || (chip.tokens === undefined ? say("counting")
          : say("of context", chip.tokens.toLocaleString(), chip.context.toLocaleString()) + (chip.tokens > chip.context ? ` · ${say("too long")}` : "") + (chip.remarks ? ` · ${chip.remarks}` : ""))),
        make("button", { "aria-label": say("remove file", chip.name), onclick: () => { chips = chips.filter((other) => other !== chip); publish(); edge.field()?.focus(); } }, icon(icons.close)))));
    };
    const add = async (files) => {
      for (const file of files) {
        const chip = { name: file.name };
        chips = [...chips, chip];
        publish();
        try {
          const { path } = await part.upload(file);
          Object.assign(chip, await edge.server().read({ path, name: file.name, language: edge.language }));
        } catch (fault) {
          chip.error = String(fault.message || fault);
        }
        publish();
      }
      edge.field()?.focus();
    };
    part.watch("value", () => { if (!part.props.value?.length && chips.some((chip) => chip.key)) { chips = []; publish(); } });
    const accepts = (event) => document.body.dataset.edgeView === "chat" && [...(event.dataTransfer?.types || [])].includes("Files");
    window.addEventListener("dragover", (event) => { if (accepts(event)) { event.preventDefault(); document.body.classList.add("edge-drop"); } });
    window.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("edge-drop"); });
    window.addEventListener("drop", (event) => {
      document.body.classList.remove("edge-drop");
      if (!accepts(event)) return;
      event.preventDefault();
      event.stopPropagation();
      add([...event.dataTransfer.files]);
    }, true);
    document.documentElement.style.setProperty("--edge-drop", JSON.stringify(say("drop")));
    document.documentElement.style.setProperty("--edge-welcome", JSON.stringify(say("welcome")));
    document.documentElement.style.setProperty("--edge-welcome-more", JSON.stringify(say("welcome more")));
    document.documentElement.style.setProperty("--edge-lost", JSON.stringify(say("lost")));
  };
})();
