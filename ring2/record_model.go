package ring2

// AppendModel appends the payload of a MODEL record.
func AppendModel(b []byte, m Model) []byte {
	for _, s := range [...]string{m.Name, m.Revision, m.WeightsDigest, m.Quantisation, m.Engine, m.EngineVersion} {
		b = appendText(b, s)
	}
	b = order.AppendUint32(b, m.Layers)
	b = order.AppendUint32(b, m.DModel)
	return order.AppendUint32(b, m.Vocab)
}

// ParseModel reads the payload of a MODEL record.
func ParseModel(b []byte) (Model, error) {
	p := payload{b: b}
	m := Model{Name: p.text(), Revision: p.text(), WeightsDigest: p.text(), Quantisation: p.text(), Engine: p.text(),
		EngineVersion: p.text(), Layers: p.u32(), DModel: p.u32(), Vocab: p.u32()}
	return m, p.end(KindModel)
}

// AppendRequestOpen appends the payload of a REQUEST_OPEN record.
func AppendRequestOpen(b []byte, r RequestOpen) []byte {
	b = order.AppendUint64(b, r.Number)
	b = appendText(b, r.ExternalID)
	b = appendText(b, r.EngineID)
	b = order.AppendUint32(b, r.Sample)
	b = appendText(b, r.Tenant)
	b = appendText(b, r.Adapter)
	b = appendText(b, r.TraceParent)
	b = appendFlag(b, r.OptIn)
	b = order.AppendUint32(b, r.PromptTokens)
	b = order.AppendUint32(b, r.MaxTokens)
	b = order.AppendUint64(b, r.OpenWallNS)
	b = order.AppendUint16(b, uint16(len(r.Labels)))
	for _, l := range r.Labels {
		b = appendText(b, l.Key)
		b = appendText(b, l.Value)
	}
	return b
}

// ParseRequestOpen reads the payload of a REQUEST_OPEN record.
func ParseRequestOpen(b []byte) (RequestOpen, error) {
	p := payload{b: b}
	r := RequestOpen{Number: p.u64(), ExternalID: p.text(), EngineID: p.text(), Sample: p.u32(), Tenant: p.text(),
		Adapter: p.text(), TraceParent: p.text(), OptIn: p.flag(), PromptTokens: p.u32(), MaxTokens: p.u32(),
		OpenWallNS: p.u64()}
	n := p.count(int(p.u16()), MaxLabels, 4, "labels")
	for range n {
		r.Labels = append(r.Labels, Label{Key: p.text(), Value: p.text()})
	}
	return r, p.end(KindRequestOpen)
}

// AppendRequestEnd appends the payload of a REQUEST_END record.
func AppendRequestEnd(b []byte, r RequestEnd) []byte {
	b = order.AppendUint64(b, r.Number)
	for _, v := range [...]uint32{r.PromptTokens, r.GeneratedTokens, r.CachedTokens, r.Passes} {
		b = order.AppendUint32(b, v)
	}
	b = append(b, byte(r.Reason))
	return order.AppendUint64(b, r.EndWallNS)
}

// ParseRequestEnd reads the payload of a REQUEST_END record.
func ParseRequestEnd(b []byte) (RequestEnd, error) {
	p := payload{b: b}
	r := RequestEnd{Number: p.u64(), PromptTokens: p.u32(), GeneratedTokens: p.u32(), CachedTokens: p.u32(),
		Passes: p.u32(), Reason: Finish(p.u8()), EndWallNS: p.u64()}
	if int(r.Reason) >= len(finishNames) {
		p.fail("finish reason %d does not exist", r.Reason)
	}
	return r, p.end(KindRequestEnd)
}

// AppendObituary appends the payload of an OBITUARY record.
func AppendObituary(b []byte, o Obituary) []byte {
	b = order.AppendUint64(b, o.DeadEpoch)
	b = order.AppendUint64(b, o.Seq)
	b = order.AppendUint16(b, uint16(o.Kind))
	b = order.AppendUint16(b, o.Flags)
	return append(b, o.Payload...)
}

// ParseObituary reads the payload of an OBITUARY record. Payload aliases b.
func ParseObituary(b []byte) (Obituary, error) {
	p := payload{b: b}
	o := Obituary{DeadEpoch: p.u64(), Seq: p.u64(), Kind: Kind(p.u16()), Flags: p.u16()}
	o.Payload = p.b
	p.b = nil
	return o, p.end(KindObituary)
}
