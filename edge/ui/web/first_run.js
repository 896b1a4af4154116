// No model yet, or another one: choose, see what it takes, watch it being made ready, stop it and go on.
(() => {
  const edge = window.edge, { make, say } = edge;
  let made = null;

  edge.changeModel = () => { edge.choosing = true; edge.view("first"); edge.ask(); };
  const time = (value) => value < 120 ? `${Math.round(value)} s` : `${Math.round(value / 60)} min`;

  edge.mount_first = (place) => {
    const box = make("section", { "aria-label": say("first title") });
    place.append(box);
    let kind = null;
    const act = async (wanted) => { const done = await edge.act(wanted); if (done.error) edge.toast(done.error); };
    const button = (key, action, cls = "") => make("button", { class: cls, "data-key": key, onclick: action }, say(key));

    const choose = (host) => {
      kind ??= made.length ? `made:${made[0].folder}` : "pocket";
      if (host.model && kind === "pocket" && host.model !== "pocket" && !made.length) kind = /^[\w.-]+\/[\w.-]+$/.test(host.model) ? "hub" : "folder";
      const text = (name) => make("input", { class: "where", "aria-label": say(`${name} label`), placeholder: say(`${name} label`),
        value: kind === name ? host.model || "" : "", "data-key": `where-${name}`, autocomplete: "off", spellcheck: "false" });
      const fields = { folder: text("folder"), hub: text("hub") };
      const option = (value, title, more) => {
        const radio = make("input", { type: "radio", name: "edge-model", value, checked: kind === value, "data-key": `radio-${value}`,
          onchange: () => { kind = value; form.querySelectorAll(".option").forEach((each) => each.classList.toggle("chosen", each.contains(radio)));
            go.textContent = say(value.startsWith("made:") ? "load" : "see cost"); fields[value]?.focus(); } });
        return make("div", { class: `option${kind === value ? " chosen" : ""}` }, make("label", {}, radio,
          make("span", {}, make("strong", {}, title), make("small", {}, more))), fields[value]);
      };
      const go = make("button", { class: "main", type: "submit", "data-key": "go" }, say(kind.startsWith("made:") ? "load" : "see cost"));
      const form = make("form", { onsubmit: (event) => {
        event.preventDefault();
        edge.choosing = false;
        act({ do: "choose", model: kind.startsWith("made:") ? kind.slice(5) : fields[kind]?.value ?? kind });
      } }, make("fieldset", {}, make("legend", { class: "unseen" }, say("first title")),
        ...made.map(({ model, folder }) => option(`made:${folder}`, model, `${say("made")} · ${folder}`)),
        option("pocket", say("pocket"), say("pocket more")), option("folder", say("folder"), say("folder more")),
        option("hub", say("hub"), say("hub more"))), make("div", { class: "buttons" }, go,
        host.loaded && button("cancel", async () => { edge.choosing = false; await act({ do: "back" }); if (!edge.choosing) edge.view("chat"); })));
      return [make("h2", {}, say("first title")), make("p", { class: "lead" }, say("first more")), fault(host), form];
    };
    const fault = (host) => host.error && make("p", { class: "fault", role: "alert" }, host.error);

    const cost = (host) => {
      const facts = host.cost, free = (bytes) => say("cost free", edge.bytes(bytes));
      const row = (key, value, more) => make("div", { class: "fact" }, make("dt", {}, say(key)), make("dd", {}, value, make("small", {}, more || "")));
      return [make("h2", {}, host.model), make("p", { class: "lead" }, say("cost title")), make("dl", { class: "facts" },
        facts.download && row("cost download", edge.bytes(facts.download.bytes), facts.download.from),
        row("cost disk", edge.bytes(facts.write.bytes), free(facts.write.free_bytes)),
        row("cost memory", say("cost about", edge.bytes(facts.memory.bytes)), free(facts.memory.available_bytes)),
        row("cost time", say("cost about", time(facts.seconds.total)), facts.download ? say("cost and download") : "")),
        facts.possible ? make("p", { class: "good" }, say("cost possible")) : make("p", { class: "fault", role: "alert" }, `${facts.reason[0].toUpperCase()}${facts.reason.slice(1)}. ${facts.way_out}`),
        make("div", { class: "buttons" }, facts.possible && button("begin export", () => act({ do: "export", model: host.model }), "main"),
          button("back", () => { edge.choosing = true; act({ do: "back" }); }))];
    };

    const work = (host) => {
      const bar = make("div", { class: "bar", role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100", "aria-label": say(`stage ${host.stage}`) }, make("span", {}));
      const what = make("p", { class: "what", "aria-live": "polite" }), clock = make("p", { class: "clock" });
      box.edgeLive = (now) => {
        const share = now.total ? 100 * now.done / now.total : null;
        bar.classList.toggle("unknown", share === null);
        share === null ? bar.removeAttribute("aria-valuenow") : bar.setAttribute("aria-valuenow", share.toFixed(0));
        bar.firstChild.style.width = share === null ? "" : `${share}%`;
        if (what.textContent !== now.what) what.textContent = now.what;
        clock.textContent = time(now.seconds) + (share === null ? "" : ` · ${share.toFixed(0)} %`);
      };
      const stop = host.stage !== "load" && button("stop", (event) => { event.target.textContent = say("stopping"); event.target.disabled = true; act({ do: "stop" }); });
      return [make("h2", {}, say(`stage ${host.stage}`)), make("p", { class: "lead" }, host.model), bar, what, clock, make("div", { class: "buttons" }, stop)];
    };

    const stopped = (host) => [make("h2", {}, host.model), fault(host) || make("p", { class: "lead" }, say("was stopped")),
      make("div", { class: "buttons" }, button("go on", () => act({ do: "export", model: host.model }), "main"), button("back", () => { edge.choosing = true; act({ do: "back" }); }))];

    const pages = { choose, cost: work, costed: cost, export: work, stopped, load: work, ready: choose };
    let asking = false;
    edge.on(async ({ host }) => {
      if (document.body.dataset.edgeView !== "first") { made = null; return; }
      const stage = edge.choosing && host.stage === "ready" ? "choose" : host.stage;
      if (stage === "ready") return edge.view("chat");
      if (stage !== "choose") [made, kind] = [null, null];
      else if (made === null) {
        if (asking) return;
        asking = true;
        try { made = (await edge.server().act({ do: "made" })).made || []; } finally { asking = false; }
      }
      edge.draw(box, JSON.stringify([stage, host.model, host.error, host.cost, host.loaded, made?.length]), () => { box.edgeLive = null; return pages[stage](host).filter(Boolean); });
      box.edgeLive?.(host);
    });
  };
})();
