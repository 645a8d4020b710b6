// Snapshot and recording of a live picture as it is shown, made in the browser; the server takes no part.
class Keep {
  static SECONDS = 300; // of a recording, which is held in memory
  static TYPES = ["video/mp4;codecs=avc1.42E01F", "video/webm;codecs=vp8", "video/webm"];

  constructor(canvas, find) {
    Object.assign(this, { canvas, recorder: null });
    this.snapshot = find("snapshot"); this.record = find("record"); this.saved = find("saved");
    const able = window.MediaRecorder && canvas.captureStream;
    this.type = able ? Keep.TYPES.find((type) => MediaRecorder.isTypeSupported(type)) : undefined;
    if (!this.type) this.record.title = "this browser cannot record; use a current Chrome, Edge, Firefox or Safari";
    this.snapshot.onclick = () => this.canvas.toBlob((blob) => this.save(blob, "png"), "image/png");
    this.record.onclick = () => (this.recorder ? this.end() : this.begin());
  }
  // a picture is shown, or the last one is: it can still be kept
  shown() { this.snapshot.disabled = false; this.record.disabled = !this.type; }
  stopped() { this.end(); this.record.disabled = true; }
  begin() {
    const recorder = new MediaRecorder(this.canvas.captureStream(), { mimeType: this.type, videoBitsPerSecond: 2.5e6 });
    const [parts, began] = [[], performance.now()];
    const tick = () => {
      const seconds = (performance.now() - began) / 1e3;
      this.record.textContent = `End recording ${clock(seconds)}`;
      if (seconds >= Keep.SECONDS) this.end();
    };
    recorder.ondataavailable = (event) => parts.push(event.data);
    recorder.onerror = () => this.end(); // keeps what there is
    recorder.onstop = () => {
      clearInterval(timer);
      recorder.stream.getTracks().forEach((track) => track.stop());
      if (this.recorder === recorder) this.end();
      const blob = new Blob(parts, { type: this.type });
      if (blob.size) this.save(blob, this.type.split(/[/;]/)[1]);
      else this.saved.textContent = "no picture came while recording; nothing is saved";
    };
    const timer = setInterval(tick, 250);
    this.recorder = recorder;
    recorder.start(1000);
    tick();
  }
  end() {
    const recorder = this.recorder;
    if (!recorder) return;
    this.recorder = null; this.record.textContent = "Record";
    if (recorder.state !== "inactive") recorder.stop();
  }
  save(blob, ending) {
    const local = new Date(Date.now() - new Date().getTimezoneOffset() * 60000).toISOString();
    const name = `lineament-${local.slice(0, 19).replace("T", "-").replaceAll(":", "")}.${ending}`;
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    this.saved.textContent = `saved ${name}; the server keeps nothing`;
  }
}

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
