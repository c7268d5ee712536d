{{- define "vqwatch.name" -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "vqwatch.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: vqwatch
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{/* The pods that are watched. */}}
{{- define "vqwatch.podLabels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
vqwatch.io/sidecar: "true"
{{- end -}}

{{/* The native sidecar, for a pod's initContainers. Goes with vqwatch.volumes. */}}
{{- define "vqwatch.sidecar" -}}
- name: vqwatch
  image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  restartPolicy: Always
  args: [daemon]
  env:
    - name: VQWATCH_CONFIG
      value: /etc/vqwatch/vqwatch.toml
    - name: VQWATCH_LISTEN
      value: ipc:///run/vqwatch/socket/vqwatch.sock
    - name: VQWATCH_STATE
      value: /var/lib/vqwatch
    - name: POD_IP
      valueFrom:
        fieldRef:
          fieldPath: status.podIP
    - name: VQWATCH_EXTERNAL_URL
      value: http://$(POD_IP):9815
  ports:
    - name: metrics
      containerPort: 9815
  startupProbe:
    httpGet:
      path: /-/ready
      port: metrics
    periodSeconds: 1
    failureThreshold: 60
  livenessProbe:
    httpGet:
      path: /-/healthy
      port: metrics
    periodSeconds: 10
    timeoutSeconds: 3
  resources:
    {{- toYaml .Values.resources | nindent 4 }}
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities:
      drop: [ALL]
  volumeMounts:
    - name: vqwatch-socket
      mountPath: /run/vqwatch
    - name: vqwatch-state
      mountPath: /var/lib/vqwatch
    - name: vqwatch-config
      mountPath: /etc/vqwatch
      readOnly: true
{{- end -}}

{{/* The volumes of the sidecar; the trainer mounts vqwatch-socket at /run/vqwatch. */}}
{{- define "vqwatch.volumes" -}}
- name: vqwatch-socket
  emptyDir:
    medium: Memory
    sizeLimit: 16Mi
- name: vqwatch-state
  {{- if .Values.state.existingClaim }}
  persistentVolumeClaim:
    claimName: {{ .Values.state.existingClaim }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .Values.state.size }}
  {{- end }}
- name: vqwatch-config
  configMap:
    name: {{ include "vqwatch.name" . }}
{{- end -}}
