"use strict";
(() => {
  const data = JSON.parse(document.getElementById("drawn").textContent);
  const make = (name, attributes = {}, parent = null, text = null) => {
    const svg = ["svg", "path", "line", "circle", "text", "rect", "g"].includes(name);
    const node = svg
      ? document.createElementNS("http://www.w3.org/2000/svg", name)
      : document.createElement(name);
    for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
    if (text !== null) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  };
  const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
  const show = (x) => {
    if (x === null || !Number.isFinite(x)) return "not finite";
    const size = Math.abs(x);
    if (Number.isInteger(x) || size >= 1e3) return size < 1e9 ? whole.format(x) : x.toExponential(2);
    if (size < 1e-3) return x.toExponential(2);
    return String(Number(x.toPrecision(4)));
  };

  // A value of an axis, with as many decimals as its ticks need.
  const tickText = (x, step) => {
    const places = Math.max(0, -Math.floor(Math.log10(step) + 1e-6));
    if (x === 0) return "0";
    if (places > 4 || Math.abs(x) >= 1e6) return x.toExponential(step < Math.abs(x) / 5 ? 1 : 0);
    return x.toLocaleString("en-US", { minimumFractionDigits: places, maximumFractionDigits: places });
  };

  // Curves.

  const height = 190, left = 52, right = 10, top = 12, bottom = 24;
  const tools = { smoothing: 0, logarithmic: false };
  const cards = [];

  // An exponential moving average without the pull towards 0 at its start, as TensorBoard's.
  const smooth = (values, weight) => {
    let sum = 0, total = 0;
    return values.map((x) => {
      if (x === null) return null;
      sum = weight * sum + (1 - weight) * x;
      total = weight * total + (1 - weight);
      return sum / total;
    });
  };

  const ticks = (low, high, most, counts) => {
    const rough = (high - low) / most;
    const power = 10 ** Math.floor(Math.log10(rough));
    let step = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.999);
    if (counts) step = Math.max(1, Math.round(step));
    const found = [];
    for (let i = Math.ceil(low / step - 1e-6); i * step <= high + step * 1e-6; i++) {
      found.push(Number((i * step).toPrecision(12)));
    }
    return found;
  };

  const logTicks = (low, high) => {
    const found = [];
    for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) {
      for (const m of high / low > 1e3 ? [1] : [1, 2, 5]) found.push(m * 10 ** p);
    }
    const inside = found.filter((x) => x >= low * 0.999 && x <= high * 1.001);
    const every = Math.ceil(inside.length / 5);
    return inside.length > 1 ? inside.filter((_, i) => i % every === 0) : ticks(low, high, 4, false);
  };

  const path = (points) => {
    let text = "", pen = "M";
    for (const [x, y] of points) {
      if (y === null) { pen = "M"; continue; }
      text += `${pen}${x.toFixed(1)},${y.toFixed(1)}`;
      pen = "L";
    }
    return text;
  };

  const draw = (card) => {
    const { curve, svg } = card;
    const width = card.node.clientWidth - 24;
    if (width < 60) return;
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    const all = Object.entries(curve.lines || {}).filter(([, v]) => v !== null);
    const shown = tools.smoothing ? smooth(curve.mean, tools.smoothing) : curve.mean;
    const reference = curve.reference || { steps: [], least: [], largest: [] };
    const values = [
      ...curve.mean, ...(curve.low || []), ...(curve.high || []), ...all.map(([, v]) => v),
      ...reference.least, ...reference.largest,
    ].filter((x) => x !== null);
    if (!values.length) return;
    // What is not positive is left out of a logarithmic axis, as a learning rate that ends at 0.
    const logarithmic = tools.logarithmic && values.some((x) => x > 0);
    const drawn = logarithmic ? values.filter((x) => x > 0) : values;
    let low = Math.min(...drawn), high = Math.max(...drawn);
    if (low === high) {
      const room = Math.abs(low) * 0.1 || 1;
      [low, high] = [low - room, high + room];
    } else if (logarithmic) {
      const room = (high / low) ** 0.05;
      [low, high] = [low / room, high * room];
    } else {
      const room = (high - low) * 0.06;
      [low, high] = [low >= 0 && low < room ? 0 : low - room, high + room];
    }
    const scale = logarithmic ? Math.log : (x) => x;
    const first = Math.min(0, ...curve.steps), last = Math.max(...curve.steps, curve.end);
    const x = (s) => left + ((s - first) / (last - first || 1)) * (width - left - right);
    const y = (v) => v === null || (logarithmic && v <= 0) ? null
      : top + (1 - (scale(v) - scale(low)) / (scale(high) - scale(low))) * (height - top - bottom);
    const marks = logarithmic ? logTicks(low, high) : ticks(low, high, 5, curve.counts);
    for (const v of marks) {
      make("line", { class: "grid", x1: left, x2: width - right, y1: y(v), y2: y(v) }, svg);
      const label = logarithmic || marks.length < 2 ? show(v) : tickText(v, marks[1] - marks[0]);
      make("text", { x: left - 7, y: y(v) + 4, "text-anchor": "end" }, svg, label);
    }
    for (const s of ticks(first, last, width > 300 ? 5 : 4, true)) {
      const anchor = x(s) > width - 24 ? "end" : "middle";
      const at = anchor === "end" ? width : x(s);
      make("text", { x: at, y: height - 7, "text-anchor": anchor }, svg, whole.format(s));
    }
    if (reference.steps.length > 1) {
      const edge = (list) => list.map((v, i) => [x(reference.steps[i]), y(v)]);
      const outline = [...edge(reference.largest), ...edge(reference.least).reverse()]
        .filter(([, v]) => v !== null);
      make("path", { class: "reference", d: path(outline) + "Z" }, svg);
    }
    const points = (list) => list.map((v, i) => [x(curve.steps[i]), y(v)]);
    if (curve.low && curve.steps.length > 1) {
      const edge = points(curve.low).filter(([, v]) => v !== null).reverse();
      const upper = points(curve.high).filter(([, v]) => v !== null);
      make("path", { class: "band", d: path([...upper, ...edge]) + "Z" }, svg);
    }
    if (tools.smoothing) make("path", { class: "raw", d: path(points(curve.mean)) }, svg);
    const heights = [];
    for (const [name, v] of all.filter(([, bound]) => y(bound) !== null)) {
      const kind = name === "untrained" ? " untrained" : "";
      make("line", { class: `bound${kind}`, x1: left, x2: width - right, y1: y(v), y2: y(v) }, svg);
      let at = y(v) - 5 < top ? y(v) + 13 : y(v) - 5;
      if (heights.some((h) => Math.abs(h - at) < 12)) at = y(v) + 13;
      heights.push(at);
      const label = `${name} ${show(v)}`;
      make("text", { class: `bound-name${kind}`, x: width - right, y: at, "text-anchor": "end" }, svg, label);
    }
    make("path", { class: "curve", d: path(points(shown)) }, svg);
    if (curve.steps.length < 30) {
      for (const [px, py] of points(shown)) {
        if (py !== null) make("circle", { class: "dot", cx: px, cy: py, r: 2.2 }, svg);
      }
    }
    card.cross = make("line", { class: "cross", y1: top, y2: height - bottom, visibility: "hidden" }, svg);
    card.mark = make("circle", { class: "dot", r: 3.6, visibility: "hidden" }, svg);
    Object.assign(card, { x, y, shown, first, last, width });
    read(card, null);
  };

  // Shows the value at the step nearest to `step`, or the last one.
  const read = (card, step) => {
    const { curve, shown } = card;
    if (!shown) return;
    let i = shown.length - 1;
    if (step !== null) {
      curve.steps.forEach((s, j) => {
        if (Math.abs(s - step) < Math.abs(curve.steps[i] - step)) i = j;
      });
    }
    const hidden = step === null || shown[i] === null || card.y(shown[i]) === null;
    const visibility = hidden ? "hidden" : "visible";
    for (const part of [card.cross, card.mark]) part.setAttribute("visibility", visibility);
    const px = card.x(curve.steps[i]);
    card.cross.setAttribute("x1", px);
    card.cross.setAttribute("x2", px);
    if (!hidden) {
      card.mark.setAttribute("cx", px);
      card.mark.setAttribute("cy", card.y(shown[i]));
    }
    card.value.textContent = show(shown[i]) + (step === null ? "" : ` at ${whole.format(curve.steps[i])}`);
  };

  const grid = document.getElementById("plots");
  for (const curve of grid ? data.curves : []) {
    const node = make("div", { class: "card", "data-curve": curve.name }, grid);
    const head = make("div", { class: "top" }, node);
    make("b", {}, head, curve.name.replaceAll("_", " "));
    const value = make("span", {}, head, "");
    const svg = make("svg", { role: "img", "aria-label": curve.name }, node);
    const card = { curve, node, svg, value };
    cards.push(card);
    svg.addEventListener("pointermove", (event) => {
      if (!card.shown) return;
      const at = event.clientX - svg.getBoundingClientRect().left;
      const part = (at - left) / (card.width - left - right);
      const step = card.first + part * (card.last - card.first);
      for (const other of cards) read(other, step);
    });
    svg.addEventListener("pointerleave", () => cards.forEach((other) => read(other, null)));
  }
  const redraw = () => cards.forEach(draw);
  if (grid) {
    const smoothing = document.getElementById("smoothing");
    smoothing.addEventListener("input", () => {
      tools.smoothing = Number(smoothing.value);
      document.getElementById("smoothed").textContent = tools.smoothing ? tools.smoothing.toFixed(2) : "off";
      redraw();
    });
    document.getElementById("logarithmic").addEventListener("change", (event) => {
      tools.logarithmic = event.target.checked;
      redraw();
    });
    new ResizeObserver(redraw).observe(grid);
    redraw();
  }

  // Feature maps.

  const colours = ["#3b78b8", "#e08a2e", "#4c9f50", "#c9483f", "#8a68b4", "#8b6452", "#d57ab5", "#8b8f94", "#b5b53a", "#38a9b8"];
  const colour = (label, n) => n <= 10 ? colours[label % 10]
    : `hsl(${Math.round((label * 360) / n)} ${label % 2 ? 45 : 65}% ${[42, 54, 64][label % 3]}%)`;
  const tip = make("div", { id: "tip" }, document.body);

  const showTip = (event, found, i) => {
    tip.replaceChildren();
    if (found.sheet) {
      const zoom = 96 / found.cell;
      const image = make("div", {}, tip);
      image.style.backgroundImage = `url(${found.sheet})`;
      image.style.backgroundSize = `${found.cell * found.columns * zoom}px auto`;
      const column = i % found.columns, row = Math.floor(i / found.columns);
      image.style.backgroundPosition = `-${column * 96}px -${row * 96}px`;
    }
    make("span", {}, tip, found.names[found.labels[i]]);
    tip.style.display = "block";
    const { width, height: tall } = tip.getBoundingClientRect();
    tip.style.left = `${Math.min(event.clientX + 14, window.innerWidth - width - 6)}px`;
    tip.style.top = `${Math.min(event.clientY + 14, window.innerHeight - tall - 6)}px`;
  };

  for (const figure of document.querySelectorAll(".map")) {
    const found = data.maps[Number(figure.dataset.map)];
    const box = make("div", { class: "panes" }, figure);
    const count = found.names.length, size = 440, edge = 14;
    const panes = [];
    const light = (label) => {
      figure.classList.toggle("dimmed", label !== null && count > 1);
      for (const { circles } of panes) {
        circles.forEach((circle, j) => circle.classList.toggle("lit", found.labels[j] === label));
      }
    };
    const choose = (i) => {
      light(i < 0 ? null : found.labels[i]);
      for (const { circles } of panes) {
        circles.forEach((circle, j) => {
          circle.classList.toggle("chosen", j === i);
          circle.setAttribute("r", j === i ? 6 : 3);
        });
      }
    };
    const place = (pane, at) => {
      pane.at = at;
      pane.when.textContent = found.steps[at] ? `step ${whole.format(found.steps[at])}` : "untrained";
      pane.circles.forEach((circle, i) => {
        const [px, py] = found.points[at][i];
        circle.setAttribute("cx", edge + px * (size - 2 * edge));
        circle.setAttribute("cy", edge + (1 - py) * (size - 2 * edge));
      });
    };
    const addPane = (at) => {
      const node = make("div", { class: "pane" }, box);
      const when = make("p", { class: "when" }, node);
      const svg = make("svg", { viewBox: `0 0 ${size} ${size}`, role: "img", "aria-label": found.name }, node);
      const circles = found.points[at].map((_, i) =>
        make("circle", { r: 3, fill: colour(found.labels[i], count), "fill-opacity": 0.85 }, svg));
      const pane = { when, svg, circles };
      panes.push(pane);
      place(pane, at);
      svg.addEventListener("pointermove", (event) => {
        const rect = svg.getBoundingClientRect(), zoom = size / rect.width;
        const mx = (event.clientX - rect.left) * zoom, my = (event.clientY - rect.top) * zoom;
        let best = -1, least = 18 ** 2;
        circles.forEach((circle, i) => {
          const d = (circle.getAttribute("cx") - mx) ** 2 + (circle.getAttribute("cy") - my) ** 2;
          if (d < least) [best, least] = [i, d];
        });
        choose(best);
        if (best < 0) tip.style.display = "none";
        else showTip(event, found, best);
      });
      svg.addEventListener("pointerleave", () => { choose(-1); tip.style.display = "none"; });
      return pane;
    };
    if (found.steps.length > 1) addPane(0);
    const pane = addPane(found.steps.length - 1);
    if (found.steps.length > 2) {
      const label = make("label", { class: "steps" }, null);
      const slider = make("input", { type: "range", min: 0, max: found.steps.length - 1, value: found.steps.length - 1, "aria-label": "step" }, label);
      const when = pane.when;
      when.replaceWith(label);
      label.prepend(when);
      when.style.margin = "0";
      slider.addEventListener("input", () => place(pane, Number(slider.value)));
    }
    if (count > 20) {
      make("p", { class: "note" }, figure, `${count} classes: the pointer shows an example and its class.`);
    } else if (count > 1) {
      const legend = make("div", { class: "legend" }, figure);
      found.names.forEach((name, c) => {
        const item = make("span", {}, legend);
        make("i", {}, item).style.background = colour(c, count);
        item.append(name);
        item.addEventListener("pointerenter", () => light(c));
        item.addEventListener("pointerleave", () => light(null));
      });
    }
  }

  // Pictures: the first step, and the one that is chosen in the strip.

  for (const figure of document.querySelectorAll(".pictures")) {
    const buttons = [...figure.querySelectorAll(".strip button")];
    if (!buttons.length) continue;
    const panes = [...figure.querySelectorAll(".pane")];
    const put = (pane, button) => {
      const from = button.querySelector("img"), to = pane.querySelector("img");
      to.src = from.src;
      to.alt = from.alt;
      pane.querySelector(".when").textContent = button.dataset.when;
    };
    const pick = (button) => {
      for (const other of buttons) other.classList.toggle("chosen", other === button);
      put(panes[panes.length - 1], button);
    };
    put(panes[0], buttons[0]);
    pick(buttons[buttons.length - 1]);
    for (const button of buttons) button.addEventListener("click", () => pick(button));
  }
})();
