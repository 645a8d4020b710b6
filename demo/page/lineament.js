// The page's own script: a webcam or a network camera, drawn with the points that the server found, and a zoomable
// picture. One frame is in flight at a time: the next is captured when the previous one is drawn, so none waits.
window.Lineament = (() => {
  const SCHEMAS = /*SCHEMAS*/ {};
  // one per face, by id; as in stream/write/draw.py
  const COLOURS = ["60,230,120", "50,170,255", "255,160,80", "230,110,230", "240,220,90", "70,200,210", "255,130,130", "160,240,180"];
  const LONG_SIDE = 640; // of a frame as sent, px
  const QUALITY = 0.8;
  const colourOf = (id) => COLOURS[id % COLOURS.length];
  const KEPT = 120; // measurements kept for the status line

  // ---- drawing -------------------------------------------------------------------------------------------------

  function drawResult(canvas, picture, result, view) {
    const { width, height } = result;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const ctx = canvas.getContext("2d");
    const x = view.mirror ? (v) => width - 1 - v : (v) => v;
    ctx.setTransform(view.mirror ? -1 : 1, 0, 0, 1, view.mirror ? width : 0, 0);
    ctx.drawImage(picture, 0, 0, width, height);
    ctx.setTransform(1, 0, 0, 1, 0.5, 0.5); // integer coordinates are pixel centres
    ctx.lineJoin = ctx.lineCap = "round";
    for (const face of result.faces) drawFace(ctx, face, SCHEMAS[result.schema], x, view);
  }

  function drawFace(ctx, face, schema, x, view) {
    const shown = new Set(view.shown);
    const colour = colourOf(face.id);
    const [x1, y1, x2, y2] = face.box_xyxy;
    const size = Math.max(x2 - x1, y2 - y1);
    const text = Math.max(11, Math.min(ctx.canvas.width, ctx.canvas.height) / 30);
    ctx.strokeStyle = `rgb(${colour})`;
    if (shown.has("curves")) {
      ctx.lineWidth = Math.max(1, size / 180);
      for (const part of schema) {
        ctx.beginPath();
        for (const index of part.indices) ctx.lineTo(x(face.points[index][0]), face.points[index][1]);
        if (part.closed) ctx.closePath();
        ctx.stroke();
      }
    }
    if (shown.has("points")) {
      ctx.fillStyle = "rgba(255,255,255,.92)";
      const radius = Math.max(0.9, size / 140);
      ctx.beginPath();
      for (const [px, py] of face.points) { ctx.moveTo(x(px) + radius, py); ctx.arc(x(px), py, radius, 0, 7); }
      ctx.fill();
    }
    if (shown.has("boxes")) {
      ctx.lineWidth = Math.max(1, size / 150);
      ctx.strokeRect(Math.min(x(x1), x(x2)), y1, x2 - x1, y2 - y1);
    }
    if (shown.size) {
      const label = shown.has("boxes") ? `${face.id}  ${face.confidence.toFixed(2)}` : `${face.id}`;
      write(ctx, label, Math.min(x(x1), x(x2)), y1 - text * 0.5, text);
    }
    if (shown.has("pose")) drawPose(ctx, face, schema, x, size, text, view.mirror);
  }

  function drawPose(ctx, face, schema, x, size, text, mirror) {
    const { yaw, pitch, roll } = face.pose_deg;
    if (yaw === null) return;
    const [a, b, c] = [yaw, pitch, roll].map((deg) => (deg * Math.PI) / 180);
    const [right, down] = [Math.sin(a) * Math.cos(b), -Math.sin(b)];
    const ridge = schema.find((part) => part.name === "nose_ridge").indices;
    const [nx, ny] = face.points[ridge[ridge.length - 1]];
    const tip = [nx + 0.7 * size * (right * Math.cos(c) - down * Math.sin(c)), ny + 0.7 * size * (right * Math.sin(c) + down * Math.cos(c))];
    ctx.strokeStyle = "rgb(255,70,70)";
    ctx.lineWidth = Math.max(1, size / 60);
    ctx.beginPath(); ctx.moveTo(x(nx), ny); ctx.lineTo(x(tip[0]), tip[1]); ctx.stroke();
    const [x1, , x2, y2] = face.box_xyxy;
    const left = Math.min(x(x1), x(x2));
    const number = (v) => (v === null ? "?" : v.toFixed(2));
    const whole = (v) => Math.round(v) || 0; // not -0
    const side = mirror ? -1 : 1; // left and right as seen on the screen
    const eyes = mirror ? [...face.eye_aspect].reverse() : face.eye_aspect;
    write(ctx, `yaw ${whole(side * yaw)} pitch ${whole(pitch)} roll ${whole(side * roll)}`, left, y2 + text * 1.3, text * 0.8);
    write(ctx, `eyes ${eyes.map(number).join(" ")} mouth ${number(face.mouth_aspect)}`, left, y2 + text * 2.4, text * 0.8);
  }

  function write(ctx, text, left, base, size) {
    ctx.font = `600 ${size}px system-ui, sans-serif`;
    const x = Math.max(2, Math.min(left, ctx.canvas.width - ctx.measureText(text).width - 3));
    const y = Math.max(size, Math.min(base, ctx.canvas.height - 4));
    ctx.lineWidth = size / 5; ctx.strokeStyle = "rgba(20,20,20,.85)"; ctx.fillStyle = "#fff";
    ctx.strokeText(text, x, y); ctx.fillText(text, x, y);
  }

  // ---- shared by both live views ------------------------------------------------------------------------------

  class Meter {
    constructor() { this.reset(); }
    reset() { this.drawn = []; this.latency = []; this.frames = 0; }
    add(latencyMs) {
      const now = performance.now();
      this.frames += 1;
      this.drawn.push(now); this.latency.push(latencyMs);
      if (this.latency.length > KEPT) this.latency.shift();
      while (this.drawn[0] < now - 2000) this.drawn.shift();
    }
    get fps() { return this.drawn.length < 2 ? 0 : ((this.drawn.length - 1) * 1000) / (this.drawn[this.drawn.length - 1] - this.drawn[0]); }
    percentile(share) {
      const sorted = [...this.latency].sort((a, b) => a - b);
      return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? NaN;
    }
  }

  class View {
    constructor(element, server, path) {
      Object.assign(this, { element, server, path });
      this.find = (name) => element.querySelector(`[data-ln=${name}]`);
      this.canvas = this.find("canvas"); this.status = this.find("status"); this.error = this.find("error");
      this.meter = new Meter();
      this.signals = new Signals(this.find("signals"), colourOf);
      this.keep = new Keep(this.canvas, this.find);
      this.view = { mirror: false, shown: ["points", "curves"] };
      this.settings = {};
      this.socket = null; this.running = false;
      this.turn = null; // identifies the latest start; async work of an earlier one sees the difference and ends
      element.lineament = this; // for tests and debugging
    }
    say(text) { this.status.textContent = text; }
    fail(text) {
      this.error.textContent = text; this.error.hidden = !text;
      this.element.dataset.state = text ? "error" : this.element.dataset.state;
    }
    set(settings, view) {
      Object.assign(this.view, view);
      this.settings = { ...settings, shown: this.view.shown };
      if (this.socket?.readyState === 1) this.socket.send(JSON.stringify(this.settings));
    }
    // opens the socket of this view; if the view was restarted or stopped meanwhile, closes it and returns false
    async connect(turn) {
      const ticket = await this.server.ticket(0);
      const root = window.gradio_config?.root || location.origin + location.pathname;
      const url = new URL(`lineament/${this.path}?ticket=${encodeURIComponent(ticket)}`, root.replace(/\/?$/, "/"));
      url.protocol = url.protocol.replace("http", "ws");
      const socket = new WebSocket(url);
      socket.binaryType = "arraybuffer";
      socket.onmessage = (event) => { if (socket === this.socket) this.heard(event.data); };
      socket.onclose = (event) => { if (socket === this.socket) this.closed(event); };
      await new Promise((ready, failed) => { socket.onopen = ready; socket.onerror = () => failed(new Error("the demo does not answer; check that it is still running")); });
      if (turn !== this.turn) { socket.close(); return false; }
      this.socket = socket;
      return true;
    }
    drop() { const socket = this.socket; this.socket = null; socket?.close(); }
    shown(result, latencyMs) {
      this.result = { ...result, latency_ms: latencyMs };
      this.meter.add(latencyMs);
      this.signals.add(result, this.view.mirror);
      this.keep.shown();
      const faces = result.faces.length;
      this.say(`${this.meter.fps.toFixed(0)} fps · ${this.meter.percentile(0.5).toFixed(0)} ms · ${faces} ${faces === 1 ? "face" : "faces"}`);
      this.element.dataset.state = "running"; this.element.dataset.frames = this.meter.frames; this.element.dataset.faces = faces;
    }
    reset() { this.meter.reset(); this.signals.clear(); }
    visible() { return !document.hidden && this.canvas.offsetParent !== null; }
  }

  // ---- webcam --------------------------------------------------------------------------------------------------

  class Webcam extends View {
    constructor(element, server, sample) {
      super(element, server, "live");
      this.sample = sample;
      this.video = Object.assign(document.createElement("video"), { muted: true, playsInline: true, loop: true });
      this.grab = document.createElement("canvas");
      this.inFlight = false; this.skipped = 0; this.mostWaiting = 0; this.retries = 0;
      this.cameras = this.find("cameras");
      this.find("start").onclick = () => this.start("camera");
      this.find("sample").onclick = () => this.start("sample");
      this.find("stop").onclick = () => this.stop("");
      this.cameras.onchange = () => this.start("camera");
      window.addEventListener("pagehide", () => this.stop(""));
    }
    async start(kind) {
      this.stop("");
      this.fail(""); this.running = true; this.kind = kind;
      const turn = (this.turn = {});
      this.element.dataset.state = "starting"; this.buttons();
      this.say(kind === "camera" ? "requesting the camera" : "loading the sample");
      try {
        await this.open(kind, turn);
        if (turn !== this.turn || !(await this.connect(turn))) return;
        this.socket.send(JSON.stringify(this.settings));
        this.reset(); this.inFlight = false;
        this.watch(turn);
      } catch (error) {
        if (turn !== this.turn) return;
        this.stop(""); this.fail(this.reason(error));
      }
    }
    async open(kind, turn) {
      const video = this.video;
      if (kind === "sample") {
        video.srcObject = null; video.src = this.sample;
      } else {
        if (!navigator.mediaDevices?.getUserMedia) throw new Error("browsers allow the camera on https:// and localhost only; open this page there, or use the sample");
        const id = this.cameras.value;
        const facing = id === "user" || id === "environment" ? { facingMode: id } : id ? { deviceId: { exact: id } } : {};
        const stream = await navigator.mediaDevices.getUserMedia({ audio: false, video: { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 }, ...facing } });
        if (turn !== this.turn) { stream.getTracks().forEach((track) => track.stop()); return; }
        video.removeAttribute("src"); video.srcObject = stream;
        stream.getVideoTracks()[0].onended = () => { this.stop(""); this.fail("the camera was disconnected; connect it and start again"); };
        this.list();
      }
      await video.play();
    }
    async list() {
      const found = (await navigator.mediaDevices.enumerateDevices()).filter((device) => device.kind === "videoinput");
      const chosen = this.video.srcObject?.getVideoTracks()[0]?.getSettings().deviceId;
      this.cameras.replaceChildren(...found.map((device, i) => new Option(device.label || `camera ${i + 1}`, device.deviceId, false, device.deviceId === chosen)));
      this.cameras.hidden = found.length < 2;
    }
    watch(turn) {
      const next = () => { this.video.requestVideoFrameCallback ? this.video.requestVideoFrameCallback(tick) : requestAnimationFrame((now) => tick(now, {})); };
      // a frame requested before a restart may arrive after it; capturing it would leave it in flight for ever
      const tick = (now, meta) => { if (turn === this.turn) { this.take(now, meta, turn); next(); } };
      next();
    }
    async take(now, meta, turn) {
      if (this.inFlight) { this.skipped += 1; return; }
      if (this.socket?.readyState !== 1 || !this.visible() || !this.video.videoWidth) return;
      this.inFlight = true;
      this.takenMs = performance.now();
      this.capturedMs = meta.captureTime ?? this.takenMs;
      const scale = Math.min(1, LONG_SIDE / Math.max(this.video.videoWidth, this.video.videoHeight));
      const [width, height] = [Math.round(this.video.videoWidth * scale), Math.round(this.video.videoHeight * scale)];
      if (this.grab.width !== width || this.grab.height !== height) Object.assign(this.grab, { width, height });
      this.grab.getContext("2d", { alpha: false }).drawImage(this.video, 0, 0, width, height);
      const blob = await new Promise((ready) => this.grab.toBlob(ready, "image/jpeg", QUALITY));
      if (turn !== this.turn) return;
      if (this.socket?.readyState !== 1 || !blob) { this.inFlight = false; return; }
      this.encodedMs = performance.now();
      this.mostWaiting = Math.max(this.mostWaiting, this.socket.bufferedAmount);
      this.socket.send(blob);
    }
    heard(text) {
      const result = JSON.parse(text);
      if (result.error) { this.inFlight = false; this.fail(result.error); return; }
      this.fail(""); this.retries = 0;
      const replied = performance.now();
      drawResult(this.canvas, this.grab, result, this.view);
      const now = performance.now();
      this.steps = { encode: this.encodedMs - this.takenMs, reply: replied - this.encodedMs, draw: now - replied, age: now - this.capturedMs };
      this.shown(result, now - this.takenMs);
      this.inFlight = false;
    }
    closed(event) {
      this.socket = null;
      if (!this.running) return;
      if (event.code === 4429) { const shown = this.error.textContent; this.stop(""); this.fail(shown || "all live views are in use; try again in a moment"); return; }
      if (this.retries >= 5) { this.stop(""); this.fail("the connection to the demo is lost; check that it is still running"); return; }
      this.say("connection lost, reconnecting");
      const turn = this.turn;
      const again = async () => {
        if (turn !== this.turn) return;
        if (!this.visible()) { setTimeout(again, 1000); return; } // a hidden view does not use up a place
        this.retries += 1;
        try {
          if (!(await this.connect(turn))) return;
          this.socket.send(JSON.stringify(this.settings)); this.inFlight = false;
        } catch (error) { if (turn === this.turn) this.closed({}); }
      };
      setTimeout(again, 500 * 2 ** this.retries);
    }
    stop(text) {
      this.running = false; this.turn = null; this.inFlight = false;
      this.drop(); this.keep.stopped();
      this.video.pause();
      this.video.srcObject?.getTracks().forEach((track) => track.stop());
      this.video.srcObject = null;
      this.say(text); this.element.dataset.state = "stopped";
      this.buttons();
    }
    buttons() { this.find("stop").disabled = !this.running; }
    reason(error) {
      const words = { NotAllowedError: "the browser blocks the camera; allow it in the address bar and start again, or use the sample",
        NotFoundError: "no camera found; connect one, or use the sample", NotReadableError: "the camera is in use by another program; close that and start again",
        OverconstrainedError: "that camera is no longer available; choose another" };
      return words[error.name] || error.message || String(error);
    }
  }

  // ---- network camera ------------------------------------------------------------------------------------------

  class NetworkCamera extends View {
    constructor(element, server) {
      super(element, server, "camera");
      this.address = this.find("address");
      this.find("start").onclick = () => this.start();
      this.find("stop").onclick = () => this.stop("");
      this.address.onkeydown = (event) => { if (event.key === "Enter") this.start(); };
      window.addEventListener("pagehide", () => this.stop(""));
    }
    set(settings, view) { super.set(settings, { ...view, mirror: false }); } // only one's own webcam is mirrored
    async start() {
      this.stop(""); this.fail("");
      if (!this.address.value.trim()) { this.fail("enter the camera's address first"); this.address.focus(); return; }
      const turn = (this.turn = {});
      this.element.dataset.state = "starting"; this.running = true; this.buttons();
      this.say("opening the camera");
      try {
        if (!(await this.connect(turn))) return;
        this.reset();
        this.socket.send(JSON.stringify({ ...this.settings, url: this.address.value.trim() }));
      } catch (error) {
        if (turn !== this.turn) return;
        this.stop(""); this.fail(error.message || String(error));
      }
    }
    async heard(data) {
      if (typeof data === "string") {
        const message = JSON.parse(data);
        if (message.error) { this.stop(""); this.fail(message.error); return; }
        if (message.ended) { this.stop(message.ended); return; }
        this.meta = message;
        return;
      }
      const [meta, socket] = [this.meta, this.socket];
      const began = performance.now();
      const picture = await createImageBitmap(new Blob([data], { type: "image/jpeg" }));
      if (socket !== this.socket) return;
      drawResult(this.canvas, picture, meta, this.view);
      picture.close();
      this.shown(meta, meta.ms.age + performance.now() - began);
      const next = () => { if (socket === this.socket) socket.send(JSON.stringify({ next: true })); };
      this.visible() ? next() : setTimeout(next, 1000);
    }
    closed() { if (this.running) { this.stop(""); if (this.error.hidden) this.fail("the connection to the demo is lost; start again"); } }
    stop(text) { this.running = false; this.turn = null; this.drop(); this.keep.stopped(); this.say(text); this.element.dataset.state = "stopped"; this.buttons(); }
    buttons() { this.find("stop").disabled = !this.running; }
  }

  // ---- a picture to zoom ---------------------------------------------------------------------------------------

  function zoomable(element, watch) {
    let scale = 1, x = 0, y = 0, pointers = new Map();
    const stage = () => element.querySelector("[data-ln=zoom]");
    const apply = () => {
      const box = stage()?.getBoundingClientRect(), img = stage()?.querySelector("img");
      if (!box || !img) return;
      x = Math.min(0, Math.max(x, box.width * (1 - scale))); y = Math.min(0, Math.max(y, box.height * (1 - scale)));
      img.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
      element.dataset.scale = scale.toFixed(2);
    };
    const zoom = (factor, px, py) => {
      const box = stage().getBoundingClientRect();
      const [cx, cy] = px === undefined ? [box.width / 2, box.height / 2] : [px - box.left, py - box.top];
      const to = Math.min(12, Math.max(1, scale * factor));
      x = cx - ((cx - x) * to) / scale; y = cy - ((cy - y) * to) / scale; scale = to;
      apply();
    };
    const onStage = (event) => stage()?.contains(event.target);
    element.addEventListener("wheel", (event) => { if (onStage(event) && (event.ctrlKey || event.metaKey || scale > 1)) { event.preventDefault(); zoom(Math.exp(-event.deltaY / 300), event.clientX, event.clientY); } }, { passive: false });
    element.addEventListener("dblclick", (event) => { if (onStage(event)) scale > 1 ? zoom(1 / scale) : zoom(3, event.clientX, event.clientY); });
    element.addEventListener("pointerdown", (event) => { if (onStage(event) && (scale > 1 || event.pointerType === "touch")) { pointers.set(event.pointerId, event); stage().setPointerCapture(event.pointerId); } });
    element.addEventListener("pointermove", (event) => {
      const last = pointers.get(event.pointerId);
      if (!last) return;
      const others = [...pointers.values()].filter((p) => p.pointerId !== event.pointerId);
      if (others.length) {
        const gap = (p) => Math.hypot(p.clientX - others[0].clientX, p.clientY - others[0].clientY);
        zoom(gap(event) / Math.max(1, gap(last)), (event.clientX + others[0].clientX) / 2, (event.clientY + others[0].clientY) / 2);
      } else { x += event.clientX - last.clientX; y += event.clientY - last.clientY; apply(); }
      pointers.set(event.pointerId, event);
    });
    for (const name of ["pointerup", "pointercancel"]) element.addEventListener(name, (event) => pointers.delete(event.pointerId));
    element.addEventListener("keydown", (event) => {
      if (!onStage(event)) return;
      const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
      if (event.key === "+" || event.key === "=") zoom(1.4);
      else if (event.key === "-") zoom(1 / 1.4);
      else if (event.key === "0") zoom(1 / scale);
      else if (moves[event.key] && scale > 1) { x += moves[event.key][0]; y += moves[event.key][1]; apply(); }
      else return;
      event.preventDefault();
    });
    element.addEventListener("click", (event) => {
      const step = event.target.closest("[data-ln-zoom]")?.dataset.lnZoom;
      if (step) zoom(step === "in" ? 1.5 : step === "out" ? 1 / 1.5 : 1 / scale);
    });
    watch("value", apply); // a new drawing keeps the zoom
  }

  const views = {};
  let chosen = [{}, {}]; // settings and view options, also for views that are created later
  const add = (name, view) => { views[name] = view; view.set(...chosen); };
  return {
    webcam(element, server, sample) { add("webcam", new Webcam(element, server, sample)); },
    camera(element, server) { add("camera", new NetworkCamera(element, server)); },
    set(settings, view) { chosen = [settings, view]; Object.values(views).forEach((open) => open.set(settings, view)); },
    zoomable, views,
  };
})();
